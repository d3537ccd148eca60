"""The vision tower: recorded numbers, its parameters, and what it must not depend on."""

import dataclasses
import math

import pytest
import torch
from vision_models import (
    COLUMN,
    FULL,
    REAL_VISION_CONFIG,
    ROW,
    generated,
    generated_weights,
    layer_specs,
    parameter_shapes,
    random_patches,
    random_weights,
    tiny_config,
    tower_of,
)

from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.vision import VisionOrder, parse_vision_config
from mimo_engine.errors import ConfigError
from mimo_engine.kernels.segment_attention import segment_attention_reference
from mimo_engine.model.vision import MiMoVisionTransformer, VisionAttention

GRIDS = [(1, 4, 6), (2, 4, 4)]
PATCHES = torch.from_numpy(generated(1000, 56 * 24).reshape(56, 24))

# vision.md 8.4: sum, sum of absolute values, the first four values of tokens 0, 3, 5, 6 and 13.
RECORDED = {
    "extra_column, layernorm": (
        (41.169325, 121.356015),
        (0.794164, -0.401699, -1.234736, 0.604904),
        (0.441398, 0.174120, -0.497188, 0.454294),
        (0.146752, -0.271839, -0.991299, 0.943613),
        (0.813853, -0.148842, -0.127152, 1.061853),
        (0.022498, -0.751945, -0.229146, 0.220286),
    ),
    "key0, layernorm": (
        (43.345504, 125.326159),
        (0.532477, -0.389502, -1.181863, 0.500624),
        (0.334522, 0.278525, -0.588837, 0.463736),
        (0.141309, -0.119890, -0.690781, 1.089144),
        (0.636862, 0.194363, -0.055041, 0.942603),
        (-0.205279, -1.039543, -0.270838, 0.379584),
    ),
    "no sinks, layernorm": (
        (45.280398, 126.551199),
        (0.465683, -0.393465, -1.243501, 0.476222),
        (0.319672, 0.259691, -0.592053, 0.451854),
        (0.145817, -0.118619, -0.694403, 1.094909),
        (0.831183, 0.129315, -0.158797, 1.164579),
        (-0.236694, -1.029948, -0.272667, 0.373087),
    ),
    "extra_column, rmsnorm": (
        (40.516368, 118.690967),
        (0.816602, -0.263567, -1.092271, 0.775341),
        (0.397232, 0.032100, -0.537086, 0.465818),
        (0.091742, -0.212793, -1.039316, 1.013902),
        (0.775625, -0.228905, -0.147199, 1.065229),
        (-0.010740, -0.655743, -0.185055, 0.206481),
    ),
}


@torch.no_grad()
def encode(config, weights, patches=PATCHES, grids=GRIDS):
    return tower_of(config, weights)(patches, grids)


def test_the_generator_gives_the_recorded_values():
    weights = generated_weights(tiny_config())
    assert len(weights) == 67
    first = next(iter(weights.values())).flatten()[:3].tolist()
    assert first == pytest.approx([0.162836, 0.149094, 0.279512], abs=1e-6)
    pixels = PATCHES.flatten()[:3].tolist()
    assert pixels == pytest.approx([0.529901, -0.555517, 0.027910], abs=1e-6)


@pytest.mark.parametrize("variant", RECORDED)
def test_the_tiny_tower_gives_the_recorded_tokens(variant):
    sinks, merger_norm = variant.split(", ")
    weights = generated_weights(tiny_config())
    if sinks == "no sinks":
        config = tiny_config(has_sinks=False, merger_norm=merger_norm)
        weights = {name: value for name, value in weights.items() if not name.endswith("sinks")}
    else:
        config = tiny_config(sinks=sinks, merger_norm=merger_norm)
    tokens = encode(config, weights)
    sums, *rows = RECORDED[variant]
    assert [tokens.sum().item(), tokens.abs().sum().item()] == pytest.approx(sums, abs=1e-4)
    for index, row in zip((0, 3, 5, 6, 13), rows, strict=True):
        # The records have six digits; the tower computes in fp32.
        assert tokens[index, :4].tolist() == pytest.approx(row, abs=5e-6)


def test_the_hidden_state_before_the_merger_is_the_recorded_one():
    config = tiny_config()
    tower = tower_of(config, generated_weights(config))
    seen = []
    tower.merger.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tower(PATCHES, GRIDS)
    assert seen[0][0, :4].tolist() == pytest.approx(
        [2.190282, 0.347524, 1.440969, 3.407821], abs=1e-5
    )
    assert seen[0].sum().item() == pytest.approx(117.017606, abs=5e-4)


def test_column_order_and_the_window_matter_by_the_recorded_amounts():
    config = tiny_config()
    weights = generated_weights(config)
    right = encode(config, weights)
    rows_only = tuple(dataclasses.replace(spec, order=VisionOrder.ROW) for spec in config.layers)
    no_columns = encode(dataclasses.replace(config, layers=rows_only), weights)
    assert (no_columns - right).abs().max().item() == pytest.approx(0.768, abs=6e-4)
    narrow = encode(tiny_config(window=2), weights)
    assert (narrow - right).abs().max().item() == pytest.approx(1.387, abs=6e-4)


@pytest.fixture(scope="module")
def real_config():
    return parse_vision_config(REAL_VISION_CONFIG, MediaFacts())


def real_table():
    """Names and shapes of the published checkpoint (vision.md 3)."""
    table = {
        "patch_embed.proj.weight": (1280, 3, 2, 16, 16),
        "merger.ln_q.weight": (1280,),
        "merger.mlp.0.weight": (5120, 5120),
        "merger.mlp.2.weight": (4096, 5120),
    }
    for index in range(28):
        block = {"norm1.weight": (1280,), "norm2.weight": (1280,)}
        for name, rows, columns in (
            ("attn.qkv", 3072, 1280),
            ("attn.proj", 1280, 2048),
            ("mlp.gate_proj", 4608, 1280),
            ("mlp.up_proj", 4608, 1280),
            ("mlp.down_proj", 1280, 4608),
        ):
            block |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
        if index % 9:
            block["attn.sinks"] = (32,)
        table |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return table


def test_the_real_tower_has_the_parameters_of_the_published_checkpoint(real_config):
    """The width of the merger is 4 x 1280: not 4 x 2048, the width of attention."""
    shapes = parameter_shapes(real_config)
    assert shapes == real_table()
    assert len(shapes) == 364
    assert sum(math.prod(shape) for shape in shapes.values()) == 728_594_432


@pytest.mark.parametrize("facts", [MediaFacts(), MediaFacts(vision_merger_norm="rmsnorm")])
def test_a_merger_of_either_norm_takes_the_same_weights(facts):
    config = parse_vision_config(REAL_VISION_CONFIG, facts)
    assert parameter_shapes(config) == real_table()


def test_a_video_runs_through_the_real_tower_without_data(real_config):
    with torch.device("meta"):
        tower = MiMoVisionTransformer(real_config).bfloat16()
        tokens = tower(torch.empty(2 * 16 * 24 + 16, 1536), [(2, 16, 24), (1, 4, 4)])
    assert tokens.shape == (2 * 8 * 12 + 4, 4096)
    assert tokens.dtype is torch.bfloat16


@pytest.mark.parametrize("kinds", [(FULL, COLUMN), (COLUMN,), (ROW, COLUMN, ROW, COLUMN)])
def test_a_tower_that_ends_by_columns_gives_its_tokens_in_row_order(kinds):
    """As if a last layer that does nothing had followed in row order."""
    config = tiny_config(kinds=kinds)
    weights = random_weights(config)
    longer = tiny_config(kinds=(*kinds, FULL))
    last = len(kinds)
    more = dict(random_weights(longer), **weights)
    for name in ("attn.proj", "mlp.down_proj"):
        for part in ("weight", "bias"):
            more[f"blocks.{last}.{name}.{part}"].zero_()
    torch.testing.assert_close(encode(config, weights), encode(longer, more))


def test_items_and_frames_do_not_see_each_other():
    config = tiny_config()
    weights = random_weights(config)
    grids = [(3, 6, 8), (1, 2, 2), (1, 10, 4), (1, 6, 8)]
    patches = random_patches(config, grids)
    together = encode(config, weights, patches, grids)
    frames = [(1, h, w) for t, h, w in grids for _ in range(t)]
    rows = patches.split([h * w for _, h, w in frames])
    alone = [
        encode(config, weights, part, [frame]) for part, frame in zip(rows, frames, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_without_sinks_the_window_stays():
    config = tiny_config(has_sinks=False)
    assert [spec.window for spec in config.layers] == [None, 3, 3, 3, None]
    weights = random_weights(config)
    unbounded = dataclasses.replace(config, layers=layer_specs((FULL,) * 5))
    windowed = encode(config, weights)
    assert (windowed - encode(unbounded, weights)).abs().max() > 0.1
    real = parse_vision_config({**REAL_VISION_CONFIG, "use_sink": False}, MediaFacts())
    assert [spec.window for spec in real.layers[:3]] == [None, 64, 64]
    assert not any(spec.has_sinks for spec in real.layers)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_honours_an_explicit_scale(window):
    torch.manual_seed(0)
    attention = VisionAttention(
        32, num_heads=4, num_kv_heads=2, head_dim=8, window=window, sinks=None, softmax_scale=1.0
    )
    x, lengths = torch.randn(11, 32), [4, 7]
    no_turn = (torch.ones(11, 4), torch.zeros(11, 4))
    q, k, v = attention.qkv(x).view(11, 8, 8).split((4, 2, 2), dim=1)
    heads = segment_attention_reference(
        q, k, v, lengths, left=window, right=window, softmax_scale=1.0
    )
    expected = attention.proj(heads.flatten(1))
    torch.testing.assert_close(attention(x, no_turn, lengths), expected, atol=1e-5, rtol=1e-5)


def test_attention_uses_the_usual_scale_when_none_is_given():
    torch.manual_seed(0)
    sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "window": 2}
    usual = VisionAttention(32, **sizes, sinks="extra_column")
    stated = VisionAttention(32, **sizes, sinks="extra_column", softmax_scale=0.25)
    other = VisionAttention(32, **sizes, sinks="extra_column", softmax_scale=1.0)
    for attention in (stated, other):
        attention.load_state_dict(usual.state_dict())
    x, rope = torch.randn(9, 32), (torch.ones(9, 8), torch.zeros(9, 8))
    assert torch.equal(usual(x, rope, [9]), stated(x, rope, [9]))
    assert (usual(x, rope, [9]) - other(x, rope, [9])).abs().max() > 1e-3


@pytest.mark.parametrize("sinks", ["extra_column", "key0"])
def test_every_parameter_and_every_patch_gets_a_gradient(sinks):
    config = tiny_config(kinds=(FULL, ROW, COLUMN), sinks=sinks)
    tower = MiMoVisionTransformer(config)
    tower.load_state_dict(random_weights(config))
    patches = random_patches(config, GRIDS).requires_grad_()
    tower(patches, GRIDS).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in tower.named_parameters()}
    for name, gradient in {**gradients, "patches": patches.grad}.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


def test_bf16_stays_close_to_fp32():
    config = tiny_config()
    weights = random_weights(config)
    exact = encode(config, weights)
    with torch.no_grad():
        rounded = tower_of(config, weights, torch.bfloat16)(PATCHES, GRIDS)
    assert rounded.dtype is torch.bfloat16
    similarity = torch.nn.functional.cosine_similarity(rounded.float(), exact, dim=1)
    # vision.md 2.9 gives 0.9987 for the real tower.
    assert similarity.min() > 0.997


def test_sinks_may_stay_in_fp32_beside_a_bf16_tower():
    config = tiny_config()
    weights = random_weights(config)
    rounded = {
        name: weight if name.endswith("sinks") else weight.bfloat16()
        for name, weight in weights.items()
    }
    tower = MiMoVisionTransformer.from_weights(config, rounded)
    with torch.no_grad():
        tokens = tower(PATCHES, GRIDS)
    assert tokens.dtype is torch.bfloat16
    assert (tokens.float() - encode(config, weights)).abs().max() < 0.1


def test_fp16_is_refused_however_it_comes_about():
    config = tiny_config()
    weights = random_weights(config)
    with pytest.raises(ConfigError, match="bfloat16 or float32"):
        tower_of(config, weights, torch.float16)(PATCHES, GRIDS)
    with pytest.raises(ConfigError, match="bfloat16 or float32"):
        tower_of(config, weights).half()(PATCHES, GRIDS)
    with torch.autocast("cpu", torch.float16), pytest.raises(ConfigError):
        tower_of(config, weights)(PATCHES, GRIDS)
    # Patches are another matter: their values fit, and are cast first.
    assert tower_of(config, weights)(PATCHES.half(), GRIDS).dtype is torch.float32


def test_a_grid_that_no_merge_unit_fits_is_a_defect_of_the_caller():
    config = tiny_config()
    weights = random_weights(config)
    with pytest.raises(AssertionError):
        encode(config, weights, PATCHES[:12], [(1, 3, 4)])
    with pytest.raises(AssertionError):
        encode(config, weights, PATCHES, [(1, 4, 6)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual_token_window_size": -1}, "visual_token_window_size"),
        ({"fullatt_block_indexes": [0]}, "fullatt_block_indexes"),
        ({"depth": 27}, "vit_window_attn_types"),
        ({"num_key_value_heads": 7}, "KV heads"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_vision_config({**REAL_VISION_CONFIG, **change}, MediaFacts())
