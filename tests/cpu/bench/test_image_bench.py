"""The tower that an image is timed in is the released one, and its products are counted right."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mimo_engine.kernels.dispatch import REFERENCE

pytest.importorskip("triton")

from mimo_engine.bench import prefill

CPU = torch.device("cpu")
FULL = prefill.released_config().layers[0]


def test_it_has_the_released_parameters():
    tower = prefill.MiMoVisionTransformer
    with torch.device("meta"):
        parameters = tower(prefill.released_config(), REFERENCE).parameters()
    # vision.md 1.1
    assert sum(parameter.numel() for parameter in parameters) == 728_594_432
    layers = prefill.released_config().layers
    assert [i for i, layer in enumerate(layers) if layer.window is None] == [0, 9, 18, 27]
    columns = [i for i, layer in enumerate(layers) if layer.order == "column"]
    assert columns == [5, 6, 7, 8, 14, 15, 16, 17, 23, 24, 25, 26]


def test_products_are_counted_as_torch_counts_them():
    config = replace(
        prefill.released_config(),
        layers=(FULL, FULL),
        hidden_size=64,
        intermediate_size=96,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        out_hidden_size=32,
    )
    tower = prefill.released_tower(config, REFERENCE, CPU, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tokens = tower(torch.randn(64, config.patch_dim), [(1, 8, 8)])
    assert tokens.isfinite().all()
    # It does not see what attention on a CPU multiplies: two products of each patch with all.
    attention = 2 * (2 * 64 * 64 * 2 * 4 * 16)
    assert prefill.tower_flops(config, 64) == counter.get_total_flops() + attention
