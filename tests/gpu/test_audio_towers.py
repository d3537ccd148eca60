"""The audio towers on CUDA: the CPU's features and codes in float32, and bf16 as it serves."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mimo_engine.config.audio import AudioEncoderConfig, AudioTokenizerConfig
from mimo_engine.kernels.dispatch import choose_kernels
from mimo_engine.kernels.residual_vq import residual_codes
from mimo_engine.model.audio import encode_audio
from mimo_engine.model.audio_encoder import MiMoAudioEncoder
from mimo_engine.model.audio_tokenizer import MiMoAudioTokenizer

# The released widths of heads and windows, on a quarter of the layers and of the width.
TOKENIZER = AudioTokenizerConfig(
    num_mels=128,
    d_model=256,
    num_layers=6,
    num_heads=4,
    ffn_dim=1024,
    kernel_size=3,
    stride=2,
    pool=2,
    windows=(128, None) * 3,
    is_causal=True,
    skip_layer=2,
    rope_theta=10000.0,
    codebook_sizes=(1024, 1024, 256, 128, 128),
    bf16_tables=True,
)
ENCODER = AudioEncoderConfig(
    num_channels=5,
    group_size=4,
    segment_frames=6000,
    num_layers=2,
    hidden_size=256,
    num_heads=4,
    head_dim=64,
    intermediate_size=1024,
    is_causal=False,
    has_final_norm=True,
    rope_theta=640000.0,
    projection_layers=2,
    out_hidden_size=512,
    vocab_sizes=(1280,) * 5,
)


def filled(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            is_table = name.endswith("embed") or "speech_embeddings" in name
            scale = 1.0 if is_table else parameter[0].numel() ** -0.5
            nn.init.normal_(parameter, std=scale)
        elif "norm" not in name:
            nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer() -> MiMoAudioTokenizer:
    model = filled(MiMoAudioTokenizer(TOKENIZER))
    assert isinstance(model, MiMoAudioTokenizer)
    return model


@pytest.fixture(scope="module")
def encoder() -> MiMoAudioEncoder:
    model = filled(MiMoAudioEncoder(ENCODER))
    assert isinstance(model, MiMoAudioEncoder)
    return model


def mels(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [2 * torch.randn(length, 128, generator=generator) - 1 for length in lengths]


def on_cuda(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy there; codebooks stay float32."""
    model = copy.deepcopy(model).cuda()
    for name, parameter in model.named_parameters():
        if not name.endswith("embed"):
            parameter.data = parameter.data.to(dtype)
    return model


def test_features_and_codes_in_float32_are_those_of_the_cpu(tokenizer) -> None:
    """With the default settings of the process: convolutions may use TF32 there."""
    assert torch.backends.cudnn.allow_tf32
    segments = mels(1201, 333, 1)
    model = on_cuda(tokenizer)
    moved = [segment.cuda() for segment in segments]
    pairs = zip(tokenizer.features(segments), model.features(moved), strict=True)
    for expected, got in pairs:
        error = (got.cpu() - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < 1e-5, error.max()
    num_equal = num_codes = 0
    for expected, got in zip(tokenizer(segments), model(moved), strict=True):
        num_equal += (got.cpu() == expected).all(dim=1).sum().item()
        num_codes += len(expected)
    # Near-ties; each is proven one in tests/cpu/model.
    assert num_equal >= 0.98 * num_codes


def test_equal_features_have_equal_codes_whatever_the_precision_of_matmuls(tokenizer) -> None:
    (features,) = tokenizer.features(mels(2000))
    tables = [p.data for name, p in tokenizer.named_parameters() if name.endswith("embed")]
    tables[0][900] = tables[0][7]
    features[3] = tables[0][7]
    expected = residual_codes(features, tables)
    assert expected[3, 0] == 7
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        got = residual_codes(features.cuda(), [table.cuda() for table in tables])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_shares_a_call_changes_no_bit(tokenizer, dtype: torch.dtype) -> None:
    model = on_cuda(tokenizer, dtype)
    segments = [segment.cuda() for segment in mels(700, 41, 1201, 6, 700)]
    together, shuffled = model.features(segments), model.features(segments[::-1])
    for segment, first, second in zip(segments, together, shuffled[::-1], strict=True):
        assert torch.equal(first, second)
        assert torch.equal(model.features([segment.clone()])[0], first)


def test_bf16_is_near_float32_from_end_to_end(tokenizer, encoder) -> None:
    segments = [segment.cuda() for segment in mels(1200, 77)]
    model = on_cuda(tokenizer, torch.bfloat16)
    for narrow, segment in zip(model.features(segments), segments, strict=True):
        (wide,) = tokenizer.features([segment.cpu()])
        assert narrow.dtype == torch.bfloat16
        assert F.cosine_similarity(narrow.float().cpu(), wide).min() > 0.99
    tower = on_cuda(encoder, torch.bfloat16)
    rows = encode_audio(model, tower, segments)
    assert rows.shape == (75 + 5, 512)
    codes = torch.cat([codes.cpu() for codes in model(segments)])
    assert F.cosine_similarity(rows.float().cpu(), encoder(codes)).min() > 0.99


def test_triton_gives_the_features_of_the_torch_form(tokenizer) -> None:
    kernels = choose_kernels("triton", torch.device("cuda"), torch.bfloat16)
    segments = [segment.cuda() for segment in mels(1201, 333, 1)]
    expected = on_cuda(tokenizer, torch.bfloat16).features(segments)
    model = on_cuda(filled(MiMoAudioTokenizer(TOKENIZER, kernels)), torch.bfloat16)
    for plain, got in zip(expected, model.features(segments), strict=True):
        assert got.dtype == torch.bfloat16
        assert got.shape == plain.shape
        assert F.cosine_similarity(got.float(), plain.float()).min() > 0.999


# What this mode misses, it misses: what it finds is a wait.
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("choice", ["reference", "triton"])
def test_the_host_never_waits_for_the_device(choice, encoder) -> None:
    kernels = choose_kernels(choice, torch.device("cuda"), torch.bfloat16)
    model = on_cuda(filled(MiMoAudioTokenizer(TOKENIZER, kernels)), torch.bfloat16)
    tower = on_cuda(encoder, torch.bfloat16)
    segments = [segment.cuda() for segment in mels(1200, 77)]
    encode_audio(model, tower, segments)
    try:
        torch.cuda.set_sync_debug_mode("error")
        encode_audio(model, tower, segments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
