"""Small random checkpoints that transformers wrote, and what transformers computes with them.

The independent side of the parity tests: `MiMoV2FlashForCausalLM`, fp32, eager attention.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import MiMoV2FlashConfig, MiMoV2FlashForCausalLM

from mimo_engine.chat.template import family_template
from mimo_engine.checkpoint.export import (
    ExportFormat,
    export_checkpoint,
    export_config,
    parts_of,
)
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.synthetic_tokenizer import write_synthetic_tokenizer
from mimo_engine.config.model import load_model_config, parse_model_config

VOCAB_SIZE = 512

# Two geometries, of 4 and of 8 chunks when fused. Neither layer pattern is periodic.
GEOMETRIES: dict[str, dict] = {
    "four_chunks": {
        "hidden_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 512,
        "moe_intermediate_size": 128,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
        "layer_kinds": "FSSSFSSF",
    },
    "eight_chunks": {
        "hidden_size": 192,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 320,
        "moe_intermediate_size": 160,
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "sliding_window": 65,
        "layer_kinds": "FSSFSSS",
        "attention_value_scale": 0.612,
    },
}


def make_reference(directory: Path, geometry: str, seed: int = 0) -> MiMoV2FlashForCausalLM:
    """Save a random model as transformers does, with our small tokenizer beside it."""
    arguments = dict(GEOMETRIES[geometry])
    kinds = arguments.pop("layer_kinds")
    names = {"F": "full_attention", "S": "sliding_attention"}
    torch.manual_seed(seed)
    config = MiMoV2FlashConfig(
        vocab_size=VOCAB_SIZE,
        num_hidden_layers=len(kinds),
        layer_types=[names[kind] for kind in kinds],
        max_position_embeddings=4096,
        initializer_range=0.08,
        attn_implementation="eager",
        **arguments,
    )
    model = MiMoV2FlashForCausalLM(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("e_score_correction_bias"):
                tensor.copy_(torch.randn_like(tensor) * 0.2)
            elif name.endswith("sinks"):
                tensor.copy_(torch.randn_like(tensor))
            elif name.endswith("norm.weight"):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(directory)
    write_synthetic_tokenizer(directory, chat_template=family_template(), vocab_size=VOCAB_SIZE)
    return model


def export_again(source: Path, target: Path, stored: ExportFormat) -> None:
    """The checkpoint in `source` in another official layout, by our own loader and exporter."""
    config = load_model_config(source)
    weights = load_checkpoint(source, config, dtype=torch.float32, keep_quantised=False)
    raw = export_config(json.loads((source / "config.json").read_text()), stored)
    export_checkpoint(target, parse_model_config(raw), parts_of(weights), stored)
    (target / "config.json").write_text(json.dumps(raw))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (target / name).write_bytes((source / name).read_bytes())


def random_prompts(lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Prompts of ordinary tokens: the ids below every special one."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def reference_logits(model: MiMoV2FlashForCausalLM, tokens: Sequence[int]) -> torch.Tensor:
    """[len(tokens), V] fp32."""
    return model(torch.tensor([list(tokens)])).logits[0]


def greedy_agrees(
    model: MiMoV2FlashForCausalLM, prompt: Sequence[int], generated: Sequence[int]
) -> str:
    """Whether every generated token is the reference's argmax given those before it.

    Returns same; tie, when the first that is not lies within 1e-5 of max |logit| of it; different.
    """
    logits = reference_logits(model, [*prompt, *generated])[len(prompt) - 1 : -1]
    chosen = torch.tensor(list(generated))
    wrong = (logits.argmax(dim=-1) != chosen).nonzero()
    if len(wrong) == 0:
        return "same"
    row = logits[int(wrong[0])]
    gap = row.max() - row[chosen[int(wrong[0])]]
    return "tie" if gap < 1e-5 * row.abs().max() else "different"
