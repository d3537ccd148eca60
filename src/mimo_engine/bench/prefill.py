"""Prompts of a model's first layers, through `LLM.generate`, and an image through its tower.

A prompt's time is that of its chunks and its first token. Its limit is the larger of two: the bytes
that its chunks touch over a measured copy rate, and its products over measured rates of products.
The image goes through the vision tower of the released geometry, random weights, as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch

from mimo_engine.bench.ceilings import Ceilings, measure_ceilings
from mimo_engine.bench.decode import peers, random_prompts, record, timed
from mimo_engine.bench.slice import SliceOptions
from mimo_engine.bench.start import started_slice
from mimo_engine.bench.touched import prompt_seconds, prompt_touches
from mimo_engine.bench.vision import REAL, WINDOW
from mimo_engine.config.vision import MiMoVLVisionConfig, VisionLayerSpec, VisionOrder
from mimo_engine.kernels.dispatch import Kernels, choose_kernels
from mimo_engine.llm import LLM
from mimo_engine.model.vision import MiMoVisionTransformer

__all__ = [
    "LENGTHS",
    "bench_image",
    "bench_prefill",
    "released_config",
    "released_tower",
    "tower_flops",
]

LENGTHS = (4096, 32768)
_FULL_EVERY, _NUM_LAYERS, _RUN = 9, 28, 4
"""Layers 0, 9, 18 and 27 see everything; between them four look along rows and four along columns
(vision.md 1.1)."""


def bench_prefill(
    options: SliceOptions, *, lengths: Sequence[int] = LENGTHS, image: bool = False
) -> None:
    """Print the times of one prompt's prefill and its first token, and append a JSON line each.
    image: a square one of 1,024 pixels through the vision tower first."""
    ceilings = measure_ceilings()
    if image:
        bench_image(options, ceilings)
    with started_slice(options, max_num_seqs=8) as (engine, start):
        print(f"{torch.cuda.get_device_name()}, start {start}")
        print(f"{'prompt':>7}{'ms':>9}{'experts':>9}{'GB':>8}{'bytes':>7}{'limit':>7}   peers")
        generator = torch.Generator().manual_seed(0)
        for length in lengths:
            _prompt(options, ceilings, engine, length, generator, start)


def _prompt(
    options: SliceOptions,
    ceilings: Ceilings,
    engine: LLM,
    length: int,
    generator: torch.Generator,
    start: dict[str, object],
) -> None:
    def prompt() -> list[list[int]]:
        return random_prompts(1, length, generator)

    timed(engine, prompt(), 1)
    ms = 1e3 * median(timed(engine, prompt(), 1) for _ in range(options.rounds))
    touched = prompt_touches(engine, prompt()[0])
    copying = 1e3 * touched.num_bytes / ceilings.copy_bytes_per_s
    multiplying = 1e3 * prompt_seconds(engine, length, ceilings)
    share = max(copying, multiplying) / ms
    own = peers(length, options)
    print(
        f"{length:>7}{ms:>9.1f}{touched.num_experts:>9.1f}{touched.num_bytes / 1e9:>8.2f}"
        f"{copying / ms:>7.0%}{share:>7.0%}   {own or ''}",
        flush=True,
    )
    line = {
        "start": start,
        "prompt": length,
        "ms": round(ms, 2),
        "experts": round(touched.num_experts, 1),
        "GB": round(touched.num_bytes / 1e9, 3),
        "share_of_bytes": round(copying / ms, 4),
        "share_of_limit": round(share, 4),
        "peers_ms": own,
    }
    record("prefill", options, ceilings, line)


def bench_image(options: SliceOptions, ceilings: Ceilings, side: int = 1024) -> None:
    """Print the time of a square image in the tower and append a JSON line. side: pixels."""
    device = torch.device("cuda")
    kernels = choose_kernels("auto", device, torch.bfloat16)
    config = released_config()
    tower = released_tower(config, kernels, device, torch.bfloat16)
    size = side // config.patch_size
    patches = torch.randn(size * size, config.patch_dim, device=device).bfloat16()
    with torch.inference_mode():
        tower(patches, [(1, size, size)])
        seconds = median(_seconds(tower, patches, size) for _ in range(options.rounds))
    flops = tower_flops(config, size * size)
    share = flops / ceilings.bf16_flops / seconds
    print(
        f"image {side} x {side}: {1e3 * seconds:.2f} ms, {share:.0%} of the limit, "
        f"{kernels.name} kernels",
        flush=True,
    )
    line = {
        "image": side,
        "patches": size * size,
        "kernels": kernels.name,
        "ms": round(1e3 * seconds, 3),
        "TFLOP": round(flops / 1e12, 3),
        "share_of_limit": round(share, 4),
    }
    record("prefill", options, ceilings, line)


def _seconds(tower: MiMoVisionTransformer, patches: torch.Tensor, size: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    tower(patches, [(1, size, size)])
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def released_config() -> MiMoVLVisionConfig:
    """The vision tower's of MiMo-V2.5 (vision.md 1.1)."""
    layers = []
    for index in range(_NUM_LAYERS):
        place = index % _FULL_EVERY
        order = VisionOrder.ROW if place <= _RUN else VisionOrder.COLUMN
        window = WINDOW if place else None
        layers.append(VisionLayerSpec(order=order, window=window, has_sinks=bool(place)))
    return replace(REAL, layers=tuple(layers))


def released_tower(
    config: MiMoVLVisionConfig, kernels: Kernels, device: torch.device, dtype: torch.dtype
) -> MiMoVisionTransformer:
    """Of random weights that keep activations of ordinary size."""
    torch.manual_seed(0)
    with device:
        tower = MiMoVisionTransformer(config, kernels).to(dtype)
    for parameter in tower.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        torch.nn.init.normal_(parameter, std=fan_in**-0.5)
    return tower


def tower_flops(config: MiMoVLVisionConfig, num_patches: int) -> int:
    """Of the products of one frame."""
    hidden, head_dim = config.hidden_size, config.head_dim
    width = (2 * config.num_heads + 2 * config.num_kv_heads) * head_dim
    plain = hidden * (width + 3 * config.intermediate_size) * num_patches
    total = num_patches * config.patch_dim * hidden
    for layer in config.layers:
        seen = num_patches
        if layer.window is not None:
            seen = min(num_patches, 2 * layer.window + 1)
        total += plain + num_patches * seen * 2 * config.num_heads * head_dim
    unit = hidden * config.merge_unit
    merged = num_patches // config.merge_unit
    return 2 * (total + merged * unit * (unit + config.out_hidden_size))
