"""The audio tokenizer: golden values, a slow implementation, and what a code may depend on."""

from dataclasses import replace

import audio_reference as reference
import numpy as np
import pytest
import torch
from audio_models import (
    GOLDEN_TOKENIZER,
    RELEASED_TOKENIZER,
    SMALL_TOKENIZER,
    arrays_of,
    assert_codes_agree,
    assert_rows_close,
    codebooks_of,
    meta_shapes,
    random_mel,
    random_tokenizer,
    random_weights,
    tokenizer_of,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mimo_engine.model.audio_tokenizer import (
    FrameConv,
    MiMoAudioTokenizer,
    rotary_frequencies,
)

GOLDEN_FEATURES = {
    0: "-0.235507 1.539174 -0.477129 -0.932891 -1.097278 0.849298 1.312829 -1.001639",
    5: "0.907888 1.117124 -0.937282 -0.928234 -1.028220 1.588712 0.130449 -0.898630",
    11: "1.680023 -0.230504 -0.808703 -0.942683 0.702819 1.286230 -0.931394 -0.819057",
}
GOLDEN_CODES = "472 632 412 472 470 412 470 472 472 412 410 460"
ODD_BIDIRECTIONAL_CODES = "460 472 410 410 410 410 412 470 470 410 410 460"
ALL_BIDIRECTIONAL_CODES = "412 412 412 412 470 412 410 470 412 470 412 460"


def golden_arrays() -> dict[str, np.ndarray]:
    shapes = meta_shapes(MiMoAudioTokenizer, GOLDEN_TOKENIZER)
    levels = {name: shape for name, shape in shapes.items() if name.endswith("embed")}
    weights = reference.golden_weights({k: v for k, v in shapes.items() if k not in levels})
    assert len(weights) == 69
    for level, (name, shape) in enumerate(levels.items()):
        index = np.arange(1, shape[0] * shape[1] + 1)
        weights[name] = (np.sin(0.37 * index**2 + 2.1 * (level + 1)) / (level + 1)).reshape(shape)
    return weights


def golden_mel() -> np.ndarray:
    t, m = np.arange(45)[:, None], np.arange(4)
    return 2 * np.sin(0.31 * t * (m + 1) + 0.5 * m) - 1


def golden_codes(text: str) -> list[list[int]]:
    return [[int(digit) for digit in frame] for frame in text.split()]


def golden_tokenizer(config=GOLDEN_TOKENIZER) -> MiMoAudioTokenizer:
    return tokenizer_of(
        config, {name: torch.tensor(a, dtype=torch.float32) for name, a in golden_arrays().items()}
    )


def test_golden_features_and_codes():
    mel = torch.tensor(golden_mel(), dtype=torch.float32)
    model = golden_tokenizer()
    (features,) = model.features([mel])
    assert features.shape == (12, 8)
    expected = [[float(value) for value in text.split()] for text in GOLDEN_FEATURES.values()]
    assert_rows_close(features[list(GOLDEN_FEATURES)], np.array(expected))
    (codes,) = model([mel])
    assert codes.dtype == torch.int64
    assert codes.tolist() == golden_codes(GOLDEN_CODES)


def test_the_slow_implementation_has_the_golden_values_to_every_printed_digit():
    arrays = golden_arrays()
    features = reference.tokenizer_features(GOLDEN_TOKENIZER, arrays, golden_mel())
    for row, text in GOLDEN_FEATURES.items():
        assert " ".join(f"{value:.6f}" for value in features[row]) == text
    codebooks = [array for name, array in arrays.items() if name.endswith("embed")]
    assert reference.quantiser_codes(features, codebooks).tolist() == golden_codes(GOLDEN_CODES)


def test_golden_codes_of_the_bidirectional_setting():
    config = replace(GOLDEN_TOKENIZER, is_causal=False, windows=(None,) * 4)
    mel = torch.tensor(golden_mel(), dtype=torch.float32)
    (codes,) = golden_tokenizer(config)([mel])
    assert codes.tolist() == golden_codes(ALL_BIDIRECTIONAL_CODES)


def test_the_golden_codes_tell_a_tokenizer_whose_full_layers_see_the_future():
    arrays = golden_arrays()
    features = reference.tokenizer_features(
        GOLDEN_TOKENIZER,
        arrays,
        golden_mel(),
        visible=lambda layer, i, j: layer % 2 == 1 or 0 <= i - j <= 3,
    )
    codebooks = [array for name, array in arrays.items() if name.endswith("embed")]
    codes = reference.quantiser_codes(features, codebooks)
    assert codes.tolist() == golden_codes(ODD_BIDIRECTIONAL_CODES)


@pytest.mark.parametrize("is_causal", [True, False])
@given(num_frames=st.integers(1, 60), seed=st.integers(0, 1000))
def test_features_and_codes_are_those_of_the_slow_implementation(is_causal, num_frames, seed):
    windows = SMALL_TOKENIZER.windows if is_causal else (None,) * 4
    config = replace(SMALL_TOKENIZER, is_causal=is_causal, windows=windows)
    model = random_tokenizer(config, seed)
    check_against_reference(model, config, random_mel(num_frames, config.num_mels, seed))


def check_against_reference(model, config, mel) -> None:
    with torch.inference_mode():
        (features,), (codes,) = model.features([mel]), model([mel])
    expected = reference.tokenizer_features(config, arrays_of(model), mel.numpy())
    assert_rows_close(features, expected)
    codebooks = codebooks_of(model)
    expected_codes = reference.quantiser_codes(expected, codebooks)
    num_ties = assert_codes_agree(
        codes.numpy(), expected_codes, features.double().numpy(), expected, codebooks
    )
    assert num_ties <= 1 + len(codes) // 20


@pytest.mark.prove
def test_the_released_geometry_is_that_of_the_slow_implementation():
    """601 mel frames are 301 of the layers: windows are cut, and both odd lengths are met."""
    model = random_tokenizer(RELEASED_TOKENIZER)
    check_against_reference(model, RELEASED_TOKENIZER, random_mel(601, 128))


def test_the_model_has_the_names_and_numbers_of_the_file():
    shapes = meta_shapes(MiMoAudioTokenizer, RELEASED_TOKENIZER)
    levels = {name: shape for name, shape in shapes.items() if name.endswith("_codebook.embed")}
    rest = {name: shape for name, shape in shapes.items() if name not in levels}
    assert list(levels.items()) == [
        (f"encoder.quantizer.vq.layers.{level}._codebook.embed", (size, 1024))
        for level, size in enumerate((1024, 1024, 256, *[128] * 17))
    ]
    expected = {
        "conv1.weight": (1024, 128, 3),
        "conv1.bias": (1024,),
        "conv2.weight": (1024, 1024, 3),
        "conv2.bias": (1024,),
        "layer_norm.weight": (1024,),
        "layer_norm.bias": (1024,),
        "down_sample_layer.0.weight": (1024, 1024, 2),
        "down_sample_norm.weight": (1024,),
        "down_sample_norm.bias": (1024,),
    }
    for layer in range(24):
        name = f"layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            expected[f"{name}.self_attn.{part}.weight"] = (1024, 1024)
            if part != "k_proj":
                expected[f"{name}.self_attn.{part}.bias"] = (1024,)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            expected |= {f"{name}.{norm}.weight": (1024,), f"{name}.{norm}.bias": (1024,)}
        expected |= {f"{name}.fc1.weight": (4096, 1024), f"{name}.fc1.bias": (4096,)}
        expected |= {f"{name}.fc2.weight": (1024, 4096), f"{name}.fc2.bias": (1024,)}
    assert rest == {f"encoder.{name}": shape for name, shape in expected.items()}
    assert (len(rest), len(levels)) == (369, 20)
    assert sum(np.prod(shape) for shape in rest.values()) == 307_927_040
    assert sum(np.prod(shape) for shape in levels.values()) == 4_587_520


@pytest.mark.parametrize("setting", [True, False])
def test_tables_are_rounded_to_bf16_as_the_setting_says(setting):
    config = replace(RELEASED_TOKENIZER, bf16_tables=setting)
    rounded = (1.0, 0.75, 0.5625, 0.421875, 0.3164062, 0.2373047, 0.1777344, 0.1337891)
    exact = (1.0, 0.7498942, 0.5623413, 0.4216965, 0.3162278, 0.2371374, 0.1778279, 0.1333521)
    frequencies = rotary_frequencies(config)
    assert len(frequencies) == 32
    assert frequencies[:8] == pytest.approx(rounded if setting else exact, abs=1e-7)

    small = replace(SMALL_TOKENIZER, bf16_tables=setting)
    weights = random_weights(meta_shapes(MiMoAudioTokenizer, small), seed=0)
    model = tokenizer_of(small, weights)
    for name, parameter in model.named_parameters():
        if not name.endswith("embed"):
            assert parameter.data_ptr() == weights[name].data_ptr(), name
            continue
        stored = reference.round_to_bf16(weights[name].numpy()) if setting else weights[name]
        assert torch.equal(parameter, torch.as_tensor(stored, dtype=torch.float32))


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 6, 9, 20])
@pytest.mark.parametrize(("kernel", "stride", "left"), [(3, 1, 1), (3, 2, 1), (2, 2, 0), (3, 3, 1)])
def test_a_frame_convolution_is_one_padded_by_zeros(num_frames, kernel, stride, left):
    torch.manual_seed(0)
    conv = FrameConv(5, 7, kernel, stride=stride, left=left, has_bias=True)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(num_frames, 5)
    # Enough zeros after the end for every output; those beyond ceil(T / stride) are cut.
    padded = F.pad(x.T[None], (left, kernel + stride))
    expected = F.conv1d(padded, conv.weight, conv.bias, stride=stride)[0].T
    got = conv(x)
    assert len(got) == -(-num_frames // stride)
    torch.testing.assert_close(got, expected[: len(got)])


@pytest.mark.parametrize("num_frames", [33, 34, 35, 36])
def test_a_code_frame_depends_on_mel_frames_up_to_four_beyond_its_first_and_no_later(num_frames):
    model = random_tokenizer(SMALL_TOKENIZER)
    mel = random_mel(num_frames, SMALL_TOKENIZER.num_mels)
    (features,) = model.features([mel.requires_grad_()])
    for frame, row in enumerate(features):
        # Not the sum, which a LayerNorm fixes.
        (gradient,) = torch.autograd.grad(row.square().sum(), mel, retain_graph=True)
        reach = gradient.abs().amax(dim=1).nonzero().max().item()
        assert reach == min(4 * frame + 4, num_frames - 1)


def test_the_codes_of_a_prefix_are_a_prefix_of_the_codes():
    model = random_tokenizer(SMALL_TOKENIZER)
    mel = random_mel(90, SMALL_TOKENIZER.num_mels)
    (features,), (codes,) = model.features([mel]), model([mel])
    for frame in range(len(codes) - 1):
        prefix = mel[: 4 * frame + 5]
        torch.testing.assert_close(
            model.features([prefix])[0][: frame + 1], features[: frame + 1], atol=1e-5, rtol=1e-5
        )
        assert torch.equal(model([prefix])[0][: frame + 1], codes[: frame + 1])


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    data=st.data(),
)
def test_what_shares_a_call_changes_no_bit(lengths, data):
    model = random_tokenizer(SMALL_TOKENIZER)
    mels = [random_mel(n, SMALL_TOKENIZER.num_mels, seed) for seed, n in enumerate(lengths)]
    order = data.draw(st.permutations(range(len(mels))))
    features, codes = model.features(mels), model(mels)
    shuffled = [mels[index] for index in order]
    for index, other_features, other_codes in zip(
        order, model.features(shuffled), model(shuffled), strict=True
    ):
        assert torch.equal(other_features, features[index])
        assert torch.equal(other_codes, codes[index])
        # Nor does it matter that the frames lie inside a larger array.
        alone = mels[index].repeat(2, 1)[: len(mels[index])]
        assert torch.equal(model.features([alone])[0], features[index])


def test_a_segment_of_one_frame_and_silence_have_finite_features():
    model = random_tokenizer(SMALL_TOKENIZER)
    silence = torch.full((50, SMALL_TOKENIZER.num_mels), -16.118095)
    single = random_mel(1, SMALL_TOKENIZER.num_mels)
    features = model.features([silence, single])
    assert [len(rows) for rows in features] == [13, 1]
    assert all(rows.isfinite().all() for rows in features)


def test_every_parameter_but_the_codebooks_learns_from_the_features():
    model = random_tokenizer(SMALL_TOKENIZER)
    model.requires_grad_()
    (features,) = model.features([random_mel(31, SMALL_TOKENIZER.num_mels)])
    features.square().mean(dim=0)[::2].sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith("embed"):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_a_model_in_bf16_keeps_its_codebooks_and_is_near_the_one_in_fp32():
    weights = random_weights(meta_shapes(MiMoAudioTokenizer, SMALL_TOKENIZER), seed=0)
    halved = {
        name: weight if name.endswith("embed") else weight.bfloat16()
        for name, weight in weights.items()
    }
    mel = random_mel(64, SMALL_TOKENIZER.num_mels)
    (wide,) = tokenizer_of(SMALL_TOKENIZER, weights).features([mel])
    model = tokenizer_of(SMALL_TOKENIZER, halved)
    (narrow,) = model.features([mel])
    assert narrow.dtype == torch.bfloat16
    assert F.cosine_similarity(wide, narrow.float()).min() > 0.999
    (codes,) = model([mel])
    expected = reference.quantiser_codes(narrow.double().detach().numpy(), codebooks_of(model))
    assert np.array_equal(codes.numpy(), expected)


def test_codebooks_in_bf16_are_refused():
    model = random_tokenizer(SMALL_TOKENIZER).to(torch.bfloat16)
    with pytest.raises(AssertionError, match="bfloat16"):
        model([random_mel(8, SMALL_TOKENIZER.num_mels)])
