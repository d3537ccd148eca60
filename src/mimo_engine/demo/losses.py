"""What training minimises: the guesses of the backbone, and those of the draft layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mimo_engine.demo.batches import TrainingBatch
from mimo_engine.demo.geometry import NUM_MTP_LAYERS
from mimo_engine.demo.network import DemoNetwork, Hidden
from mimo_engine.model.mtp import shifted_tokens

__all__ = ["BackboneLoss", "DraftLoss", "backbone_loss", "draft_loss"]

_MEL_WEIGHT = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneLoss:
    total: torch.Tensor
    """Weighted mean over tokens, and the tokenizer's own part while it learns."""
    token_losses: torch.Tensor
    """[N] fp32, of each row's next token, not weighted, without gradient."""
    token_weights: torch.Tensor
    """[N] fp32; 0 where nothing is guessed."""
    is_right: torch.Tensor
    """[N] bool: the likeliest token is the next one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftLoss:
    total: torch.Tensor
    """Sum over the draft layers of the weighted means."""
    shares_right: torch.Tensor
    """[layers]: weighted part of the rows whose likeliest token is right."""


def backbone_loss(network: DemoNetwork, batch: TrainingBatch, hidden: Hidden) -> BackboneLoss:
    """Of the token after each row."""
    targets = shifted_tokens(hidden.batch, 1)
    weights = _shifted_weights(batch, 1, targets.is_known)
    logits = network.text.logits(hidden.states)
    losses = F.cross_entropy(logits, targets.token_ids, reduction="none")
    total = (losses * weights).sum() / weights.sum()
    if hidden.mel_loss is not None:
        total = total + _MEL_WEIGHT * hidden.mel_loss
    return BackboneLoss(
        total=total,
        token_losses=losses.detach(),
        token_weights=weights,
        is_right=logits.detach().argmax(dim=-1) == targets.token_ids,
    )


def draft_loss(network: DemoNetwork, batch: TrainingBatch, hidden: Hidden) -> DraftLoss:
    """Layer k reads the token 1 + k after each row and guesses the one after it (mtp.md 5.4).

    Nothing of the backbone moves by it: hidden states, embeddings and head are constants here.
    """
    states = hidden.states.detach()
    embed, head = network.text.embed_tokens, network.text.lm_head
    assert isinstance(head.weight, torch.Tensor)
    total, shares = states.new_zeros((), dtype=torch.float32), []
    for index in range(NUM_MTP_LAYERS):
        read = shifted_tokens(hidden.batch, 1 + index)
        targets = shifted_tokens(hidden.batch, 2 + index)
        weights = _shifted_weights(batch, 2 + index, targets.is_known)
        drafted = network.mtp(
            index,
            embeddings=embed(read.token_ids).detach(),
            hidden=states,
            batch=hidden.batch,
        )
        logits = F.linear(drafted, head.weight.detach()).float()
        losses = F.cross_entropy(logits, targets.token_ids, reduction="none")
        total = total + (losses * weights).sum() / weights.sum()
        is_right = logits.detach().argmax(dim=-1) == targets.token_ids
        shares.append((is_right * weights).sum() / weights.sum())
    return DraftLoss(total=total, shares_right=torch.stack(shares))


def _shifted_weights(batch: TrainingBatch, shift: int, is_known: torch.Tensor) -> torch.Tensor:
    """[N]: the weight of the token `shift` after each row; 0 where there is none."""
    return batch.weights.roll(-shift) * is_known
