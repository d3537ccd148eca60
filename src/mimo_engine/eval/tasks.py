"""The tasks by name, and what each one can be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mimo_engine.eval.asr import asr
from mimo_engine.eval.demo_sets import demo_sets
from mimo_engine.eval.evaluation import Evaluation, Options
from mimo_engine.eval.gsm8k import gsm8k, gsm8k_chat
from mimo_engine.eval.mmmu import mmmu
from mimo_engine.eval.tool_calls import tool_calls

__all__ = ["TASKS", "EvalTask"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalTask:
    """A task of the command line."""

    load: Callable[[Options], Evaluation]
    """Raises ConfigError for data that cannot be used."""
    data: str | None = "given"
    """Where its data come from when nobody says; "given": somebody must. None: it makes them."""
    can_think: bool = True
    """Whether a caller decides about thinking."""


TASKS: Mapping[str, EvalTask] = {
    "gsm8k": EvalTask(load=gsm8k, data="openai/gsm8k", can_think=False),
    "gsm8k-chat": EvalTask(load=gsm8k_chat, data="openai/gsm8k"),
    "mmmu": EvalTask(load=mmmu, data="MMMU/MMMU"),
    "asr": EvalTask(load=asr),
    "tools": EvalTask(load=tool_calls),
    "demo": EvalTask(load=demo_sets, data=None, can_think=False),
}
