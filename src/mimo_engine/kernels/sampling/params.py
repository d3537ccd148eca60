"""What a row of logits is drawn by."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["CHUNK", "MAX_TOKENS", "RowParams", "check"]

CHUNK = 1024
"""Tokens whose weights have a common scale: part of the definition of a draw."""
MAX_TOKENS = 2**18
"""Sums of that many weights stay below 2**62."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowParams:
    """Tensors on the device of the logits, one value a row, contiguous; they may change between
    replays of a graph. Bounds are SamplingParams'."""

    temperature: torch.Tensor
    """[R] float32; below 1e-6 the row is greedy and all else but the mask is not read."""
    top_k: torch.Tensor
    """[R] int32; 0 or less: all."""
    top_p: torch.Tensor
    """[R] float32; 1: all."""
    min_p: torch.Tensor
    """[R] float32; 0: all."""
    seed: torch.Tensor
    """[R] int64, read modulo 2**64."""
    output_index: torch.Tensor
    """[R] int64, from 0. A number of another stream than TOKEN: add stream * 2**40."""
    num_live_tokens: int
    """Ids from there on are never chosen; at most V and MAX_TOKENS."""
    masks: torch.Tensor | None = None
    """[R, W] int32, 32 * W >= num_live_tokens: bit i % 32 of word i // 32 allows token i."""


def check(logits: torch.Tensor, params: RowParams) -> None:
    """Shapes, dtypes and strides are those of the contract."""
    num_rows, num_tokens = logits.shape
    assert num_rows > 0
    assert logits.dtype in (torch.float32, torch.bfloat16)
    assert logits.stride(1) == 1
    assert 0 < params.num_live_tokens <= min(num_tokens, MAX_TOKENS)
    for tensor, dtype in (
        (params.temperature, torch.float32),
        (params.top_k, torch.int32),
        (params.top_p, torch.float32),
        (params.min_p, torch.float32),
        (params.seed, torch.int64),
        (params.output_index, torch.int64),
    ):
        assert tensor.dtype is dtype
        assert tensor.shape == (num_rows,)
        assert tensor.is_contiguous()
    if params.masks is not None:
        assert params.masks.dtype is torch.int32
        assert params.masks.shape[0] == num_rows
        assert 32 * params.masks.shape[1] >= params.num_live_tokens
        assert params.masks.stride(1) == 1
