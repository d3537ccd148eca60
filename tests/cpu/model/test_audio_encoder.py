"""The audio encoder: golden values, a slow implementation, groups; and both towers in a row."""

from dataclasses import replace

import audio_reference as reference
import numpy as np
import pytest
import torch
from audio_models import (
    GOLDEN_ENCODER,
    RELEASED_ENCODER,
    SMALL_TOKENIZER,
    arrays_of,
    assert_rows_close,
    encoder_of,
    meta_shapes,
    random_encoder,
    random_mel,
    random_tokenizer,
    random_weights,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from mimo_engine.model.audio import encode_audio
from mimo_engine.model.audio_encoder import MiMoAudioEncoder

GOLDEN_CODES = "472 632 412 472 470 412 470 472 472 412 410 460"
GOLDEN_EMBEDDING = "1.589353 0.721790 -0.485242 -1.464058 -1.754304 -1.219474 -0.111106 1.049517"
GOLDEN_NORMED = "1.758545 -0.460579 -1.834751 -1.175427 -0.063553 0.011984 -0.392052 0.316145"
GOLDEN_ROWS = (
    "-0.351922 0.601661 0.274230 -0.637072 -0.191966 0.661860",
    "0.074951 0.608553 -0.153533 -0.588727 0.229555 0.559085",
    "-0.157857 0.843587 0.048926 -0.849905 0.060821 0.842051",
)
CAUSAL_ROW = "-0.370676 0.799456 0.267443 -0.833990 -0.159751 0.854619"
# The codes of SMALL_TOKENIZER fit its tables.
SMALL_ENCODER = replace(GOLDEN_ENCODER, num_channels=4, vocab_sizes=(40, 30, 21, 11))


def golden_arrays() -> dict[str, np.ndarray]:
    shapes = meta_shapes(MiMoAudioEncoder, GOLDEN_ENCODER)
    assert len(shapes) == 30
    return reference.golden_weights(shapes)


def golden_encoder(**changes) -> MiMoAudioEncoder:
    weights = {name: torch.tensor(a).float() for name, a in golden_arrays().items()}
    return encoder_of(replace(GOLDEN_ENCODER, **changes), weights)


def golden_codes() -> torch.Tensor:
    return torch.tensor([[int(digit) for digit in frame] for frame in GOLDEN_CODES.split()])


def numbers(*texts: str) -> np.ndarray:
    return np.array([[float(value) for value in text.split()] for text in texts])


def printed(row: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in row)


def random_codes(num_frames: int, config=SMALL_ENCODER, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = [
        torch.randint(0, size, (num_frames,), generator=generator) for size in config.vocab_sizes
    ]
    return torch.stack(columns, dim=1)


def test_golden_values():
    model, codes = golden_encoder(), golden_codes()
    embedded = model.embed(codes)
    assert_rows_close(embedded[:1], numbers(GOLDEN_EMBEDDING))
    normed = model.input_local_transformer(embedded.view(3, 4, 8))
    assert_rows_close(normed[0, :1], numbers(GOLDEN_NORMED))
    assert_rows_close(model(codes), numbers(*GOLDEN_ROWS))
    assert_rows_close(golden_encoder(is_causal=True)(codes)[:1], numbers(CAUSAL_ROW))


def test_the_slow_implementation_has_the_golden_values_to_every_printed_digit():
    arrays, codes = golden_arrays(), golden_codes().numpy()
    embedded = reference.encoder_embeddings(GOLDEN_ENCODER, arrays, codes)
    assert printed(embedded[0]) == GOLDEN_EMBEDDING
    normed = reference.group_transformer(GOLDEN_ENCODER, arrays, embedded[:4])
    assert printed(normed[0]) == GOLDEN_NORMED
    rows = reference.encoder_rows(GOLDEN_ENCODER, arrays, codes)
    assert tuple(map(printed, rows)) == GOLDEN_ROWS
    causal = replace(GOLDEN_ENCODER, is_causal=True)
    # Two of its digits lie on the boundary: 0.37067545 was printed as 0.370676.
    row = reference.encoder_rows(causal, arrays, codes)[:1]
    assert abs(row - numbers(CAUSAL_ROW)).max() < 1e-6


@given(
    num_frames=st.integers(1, 30),
    is_causal=st.booleans(),
    has_final_norm=st.booleans(),
    projection_layers=st.sampled_from([1, 2]),
    group_size=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 1000),
)
def test_rows_are_those_of_the_slow_implementation(num_frames, seed, **changes):
    config = replace(SMALL_ENCODER, hidden_size=32, num_heads=3, head_dim=12, **changes)
    model = random_encoder(config, seed)
    codes = random_codes(num_frames, config, seed)
    expected = reference.encoder_rows(config, arrays_of(model), codes.numpy())
    assert_rows_close(model(codes), expected)


@pytest.mark.prove
def test_the_released_geometry_is_that_of_the_slow_implementation():
    model = random_encoder(RELEASED_ENCODER)
    codes = random_codes(10, RELEASED_ENCODER)
    with torch.inference_mode():
        rows = model(codes)
    assert_rows_close(rows, reference.encoder_rows(RELEASED_ENCODER, arrays_of(model), codes))


def test_the_model_has_the_names_and_numbers_of_the_file():
    shapes = meta_shapes(MiMoAudioEncoder, RELEASED_ENCODER)
    expected = {f"speech_embeddings.{channel}.weight": (1280, 1024) for channel in range(20)}
    for layer in range(6):
        name = f"input_local_transformer.layers.{layer}"
        expected[f"{name}.input_layernorm.weight"] = (1024,)
        expected[f"{name}.post_attention_layernorm.weight"] = (1024,)
        for part in "qkvo":
            expected[f"{name}.self_attn.{part}_proj.weight"] = (1024, 1024)
            if part != "o":
                expected[f"{name}.self_attn.{part}_proj.bias"] = (1024,)
        expected[f"{name}.mlp.gate_proj.weight"] = (4096, 1024)
        expected[f"{name}.mlp.up_proj.weight"] = (4096, 1024)
        expected[f"{name}.mlp.down_proj.weight"] = (1024, 4096)
    expected["input_local_transformer.norm.weight"] = (1024,)
    expected["projection.mlp.0.weight"] = (16384, 4096)
    expected["projection.mlp.2.weight"] = (4096, 16384)
    assert shapes == expected
    assert len(shapes) == 95
    assert sum(np.prod(shape) for shape in shapes.values()) == 261_127_168


def test_parts_that_the_configuration_leaves_out_have_no_parameters():
    config = replace(GOLDEN_ENCODER, projection_layers=1, has_final_norm=False)
    names = set(meta_shapes(MiMoAudioEncoder, config))
    left_out = set(meta_shapes(MiMoAudioEncoder, GOLDEN_ENCODER)) - names
    assert left_out == {"input_local_transformer.norm.weight", "projection.mlp.2.weight"}
    assert meta_shapes(MiMoAudioEncoder, config)["projection.mlp.0.weight"] == (6, 32)


def test_every_frame_of_a_group_reaches_its_row_and_no_other():
    model = random_encoder(SMALL_ENCODER)
    codes = random_codes(12)
    rows = model(codes)
    for frame in range(12):
        other = codes.clone()
        other[frame] = (other[frame] + 1) % torch.tensor(SMALL_ENCODER.vocab_sizes)
        moved = (model(other) != rows).any(dim=1)
        assert moved.nonzero().flatten().tolist() == [frame // 4]


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5, 6, 7, 8])
def test_an_incomplete_group_ends_with_its_last_frame_again(num_frames):
    model = random_encoder(SMALL_ENCODER)
    codes = random_codes(num_frames)
    missing = -num_frames % 4
    filled = torch.cat((codes, *[codes[-1:]] * missing))
    assert len(filled) % 4 == 0
    assert torch.equal(model(codes), model(filled))


def test_codes_of_another_number_of_channels_are_refused():
    model = random_encoder(SMALL_ENCODER)
    for num_channels in (3, 5):
        with pytest.raises(AssertionError):
            model(torch.zeros(4, num_channels, dtype=torch.int64))


def test_embeddings_are_added_in_the_order_of_channels_in_their_dtype():
    model = random_encoder(SMALL_ENCODER).to(torch.bfloat16)
    codes = random_codes(16)
    expected = torch.zeros(16, 8, dtype=torch.bfloat16)
    for channel, table in enumerate(model.speech_embeddings):
        expected = expected + table.weight[codes[:, channel]]
    assert torch.equal(model.embed(codes), expected)


def test_every_parameter_learns():
    model = random_encoder(SMALL_ENCODER)
    model.requires_grad_()
    model(random_codes(200)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_model_in_bf16_is_near_the_one_in_fp32():
    weights = random_weights(meta_shapes(MiMoAudioEncoder, SMALL_ENCODER), seed=0)
    halved = {name: weight.bfloat16() for name, weight in weights.items()}
    codes = random_codes(40)
    wide = encoder_of(SMALL_ENCODER, weights)(codes)
    narrow = encoder_of(SMALL_ENCODER, halved)(codes)
    assert narrow.dtype == torch.bfloat16
    assert F.cosine_similarity(wide, narrow.float()).min() > 0.999


# audio.md 10.1: mel frames -> segments, frames of codes, tokens.
LENGTHS = {
    101: ([101], [26], 7),
    731: ([731], [183], 46),
    3001: ([3001], [751], 188),
    6001: ([6000, 1], [1500, 1], 376),
    6501: ([6000, 501], [1500, 126], 407),
    60001: ([6000] * 10 + [1], [1500] * 10 + [1], 3751),
    # 481, 3839, 3840 and 7680 samples.
    3: ([3], [1], 1),
    16: ([16], [4], 1),
    17: ([17], [5], 2),
    33: ([33], [9], 3),
}


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_a_clip_has_the_segments_the_codes_and_the_rows_of_its_length(num_frames):
    segment_lengths, code_lengths, num_tokens = LENGTHS[num_frames]
    config = replace(SMALL_TOKENIZER, num_layers=2, windows=(128, None), d_model=8, num_heads=1)
    tokenizer, encoder = random_tokenizer(config), random_encoder(SMALL_ENCODER)
    segments = random_mel(num_frames, config.num_mels).split(6000)
    assert [len(segment) for segment in segments] == segment_lengths
    with torch.inference_mode():
        assert [len(codes) for codes in tokenizer(segments)] == code_lengths
        rows = encode_audio(tokenizer, encoder, segments)
    assert rows.shape == (num_tokens, SMALL_ENCODER.out_hidden_size)
    assert num_tokens == -(-num_frames // 16)
    assert rows.isfinite().all()


@given(num_samples=st.integers(481, 200_000))
def test_a_clip_has_one_row_for_every_3840_samples_begun(num_samples):
    config = replace(SMALL_TOKENIZER, num_layers=2, windows=(128, None), d_model=8, num_heads=1)
    tokenizer, encoder = random_tokenizer(config), random_encoder(SMALL_ENCODER)
    silence = torch.full((num_samples // 240 + 1, config.num_mels), -16.118095)
    rows = encode_audio(tokenizer, encoder, silence.split(6000))
    assert len(rows) == num_samples // 3840 + 1
    assert rows.isfinite().all()


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), tail=st.integers(1, 47))
def test_a_clip_encoded_in_parts_has_the_same_rows_to_the_bit(lengths, tail):
    tokenizer, encoder = random_tokenizer(SMALL_TOKENIZER), random_encoder(SMALL_ENCODER)
    sizes = [*(16 * length for length in lengths), tail]
    segments = random_mel(sum(sizes), SMALL_TOKENIZER.num_mels).split(sizes)
    whole = encode_audio(tokenizer, encoder, segments)
    parts = [encode_audio(tokenizer, encoder, [segment]) for segment in segments]
    assert torch.equal(whole, torch.cat(parts))


def test_permuting_clips_permutes_their_rows():
    tokenizer, encoder = random_tokenizer(SMALL_TOKENIZER), random_encoder(SMALL_ENCODER)
    clips = [random_mel(n, SMALL_TOKENIZER.num_mels, seed=n) for n in (37, 64, 5)]
    codes = tokenizer(clips)
    for order in ((2, 0, 1), (1, 0, 2)):
        for index, other in zip(order, tokenizer([clips[i] for i in order]), strict=True):
            assert torch.equal(encoder(other), encoder(codes[index]))


def test_a_segment_that_ends_inside_a_group_is_the_last_of_its_clip():
    tokenizer, encoder = random_tokenizer(SMALL_TOKENIZER), random_encoder(SMALL_ENCODER)
    segments = [random_mel(20, SMALL_TOKENIZER.num_mels), random_mel(16, SMALL_TOKENIZER.num_mels)]
    with pytest.raises(AssertionError):
        encode_audio(tokenizer, encoder, segments)
    assert len(encode_audio(tokenizer, encoder, segments[::-1])) == 3


def test_an_encoder_of_fewer_channels_reads_the_first_levels():
    tokenizer = random_tokenizer(SMALL_TOKENIZER)
    encoder = random_encoder(replace(SMALL_ENCODER, num_channels=2, vocab_sizes=(40, 30)))
    mel = random_mel(64, SMALL_TOKENIZER.num_mels)
    (codes,) = tokenizer([mel])
    assert torch.equal(encode_audio(tokenizer, encoder, [mel]), encoder(codes[:, :2]))
