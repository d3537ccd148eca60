"""The text model apart from the engine: quantised weights, gradients, accounting of parameters."""

import json

import pytest
import torch

from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.params import parameter_specs
from mimo_engine.cli.main import main
from mimo_engine.config.model import load_model_config
from mimo_engine.model.batch import packed_batch
from mimo_engine.model.text import TextModel


@pytest.fixture(scope="module", params=["fp8", "mxfp4-experts"])
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "model"
    assert main(["random-checkpoint", str(path), "--format", request.param]) == 0
    return path


def hidden_of(path, sequences, *, keep_quantised: bool) -> torch.Tensor:
    config = load_model_config(path)
    weights = load_checkpoint(path, config, dtype=torch.float32, keep_quantised=keep_quantised)
    model = TextModel.from_weights(config, weights)
    with torch.inference_mode():
        return model.logits(model(packed_batch(sequences)))


def test_weights_decoded_at_load_and_at_each_use_give_the_same_bits(checkpoint):
    sequences = [list(range(40)), [3, 5, 7]]
    once = hidden_of(checkpoint, sequences, keep_quantised=False)
    each = hidden_of(checkpoint, sequences, keep_quantised=True)
    assert once.std() > 0.01
    assert torch.equal(once, each)


def test_every_parameter_learns_in_the_cacheless_forward(checkpoint):
    config = load_model_config(checkpoint)
    torch.manual_seed(0)
    model = TextModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    # Many tokens, so that every expert is chosen by some.
    tokens = torch.randint(0, 300, (2, 200))
    logits = model.logits(model(packed_batch(tokens.tolist())))
    torch.nn.functional.cross_entropy(logits[:-1], tokens.flatten()[1:]).backward()
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            continue  # it only chooses: no gradient reaches it, by definition
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_model_has_exactly_the_parameters_that_the_loader_fills(checkpoint):
    config = load_model_config(checkpoint)
    with torch.device("meta"):
        model = TextModel(config)
    specs = parameter_specs(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {name: tuple(spec.shape) for name, spec in specs.items()}


def test_the_checkpoint_written_by_default_is_the_fused_one(checkpoint):
    raw = json.loads((checkpoint / "config.json").read_text())
    assert raw["attention_projection_layout"] == "fused_qkv"
