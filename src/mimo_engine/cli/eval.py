"""`mimo-engine eval`: how well a served model answers, over its HTTP API."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm
from tyro.conf import Positional

from mimo_engine import __version__
from mimo_engine.config.security import API_KEY_VARIABLE, check_api_key
from mimo_engine.errors import ConfigError
from mimo_engine.eval.asr import asr
from mimo_engine.eval.client import ApiClient
from mimo_engine.eval.demo_sets import demo_sets
from mimo_engine.eval.evaluation import Evaluation, Options
from mimo_engine.eval.gsm8k import gsm8k, gsm8k_chat
from mimo_engine.eval.mmmu import mmmu
from mimo_engine.eval.report import as_json, summarise, table
from mimo_engine.eval.runner import Outcome, run_evaluation
from mimo_engine.eval.tool_calls import tool_calls


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalTask:
    """What is asked, and what it can be told."""

    load: Callable[[Options], Evaluation]
    """Raises ConfigError for data that cannot be used."""
    data: str | None = "given"
    """Where its data come from when nobody says; "given": somebody must. None: it makes them."""
    can_think: bool = True
    """Whether a caller decides about thinking."""


TASKS = {
    "gsm8k": EvalTask(load=gsm8k, data="openai/gsm8k", can_think=False),
    "gsm8k-chat": EvalTask(load=gsm8k_chat, data="openai/gsm8k"),
    "mmmu": EvalTask(load=mmmu, data="MMMU/MMMU"),
    "asr": EvalTask(load=asr),
    "tools": EvalTask(load=tool_calls),
    "demo": EvalTask(load=demo_sets, data=None, can_think=False),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Ask a running server the questions of a task, and score its answers.

    Exits with 0 when it ran, whatever the score; with 1 when no request was answered. A request
    that fails scores as wrong. docs/eval.md has the data formats and how answers are read.
    """

    task: Positional[Literal["gsm8k", "gsm8k-chat", "mmmu", "asr", "tools", "demo"]]
    """What is asked: gsm8k, gsm8k-chat, mmmu, asr, tools or demo."""
    url: str = "http://127.0.0.1:8000"
    """Of the server. Where it needs a key, the environment variable MIMO_ENGINE_API_KEY has it."""
    model: str | None = None
    """Name of the model. Default: the one that the server has."""
    data: str | None = None
    """A .jsonl or .parquet file, a directory of such, or the name of a dataset on the hub. Default:
    openai/gsm8k, MMMU/MMMU; asr and tools need one, demo makes its own."""
    files: str | None = None
    """Which files of the directory or dataset, such as "test-clean/*"."""
    limit: int | None = None
    """Ask only so many items, the first ones; of demo, of each set (default 300)."""
    concurrency: int = 16
    """Requests that run at once."""
    max_tokens: int | None = None
    """Tokens of an answer at most. Default: gsm8k 512, gsm8k-chat, mmmu and asr 2048, tools 1024,
    demo 512, and 4096 more with --thinking on."""
    thinking: Literal["on", "off"] | None = None
    """Whether the model thinks before it answers. Default: off. gsm8k has no chat, and demo's
    examples say it themselves."""
    timeout_s: float = 600.0
    """Seconds until a request counts as failed."""
    output: str | None = None
    """Write everything to this JSON file: scores, intervals, every answer."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"--url is {self.url!r}: it begins with http:// or https://")
        for flag, value in (
            ("--limit", self.limit),
            ("--concurrency", self.concurrency),
            ("--max-tokens", self.max_tokens),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"{flag} must be at least 1, not {value}")
        if not self.timeout_s > 0:
            raise ConfigError(f"--timeout-s must be positive, not {self.timeout_s}")
        if self.thinking is not None and not self._task.can_think:
            raise ConfigError(f"--thinking has no effect on {self.task}: leave it out")
        if self._task.data is None and (self.data or self.files):
            raise ConfigError(f"{self.task} makes its own data: leave --data and --files out")
        if self._task.data == "given" and self.data is None:
            raise ConfigError(f"{self.task} needs --data: docs/eval.md has its format")

    @property
    def _task(self) -> EvalTask:
        return TASKS[self.task]

    @property
    def data_source(self) -> str | None:
        return self.data or self._task.data

    def load(self) -> Evaluation:
        """Raises ConfigError."""
        options = Options(
            data=self.data_source,
            files=self.files,
            limit=self.limit,
            max_tokens=self.max_tokens,
            thinks=self.thinking == "on",
        )
        return self._task.load(options)


def run(command: Command) -> int:
    output = None if command.output is None else _output_file(command.output)
    evaluation = command.load()
    begin = datetime.now(UTC)
    model, outcomes = asyncio.run(_ask_all(command, evaluation))
    summaries = summarise(evaluation, outcomes)
    print(table(summaries, evaluation.metric))
    _print_failures(outcomes)
    if output is not None:
        about = _about(command, model, begin)
        report = as_json(about, evaluation, summaries, outcomes)
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if all(outcome.error is not None for outcome in outcomes) else 0


async def _ask_all(command: Command, evaluation: Evaluation) -> tuple[str, list[Outcome]]:
    """The model's name and what became of each item."""
    key = os.environ.get(API_KEY_VARIABLE)
    if key is not None:
        check_api_key(key, API_KEY_VARIABLE)
    async with aclosing(ApiClient(command.url, timeout_s=command.timeout_s, api_key=key)) as client:
        served = await client.served_models()
        model = command.model or _only_model(served)
        with tqdm(total=len(evaluation.items), desc=command.task, unit=" items") as bar:
            num_failed = 0

            def show(outcome: Outcome) -> None:
                nonlocal num_failed
                num_failed += outcome.error is not None
                bar.set_postfix(failed=num_failed, refresh=False)
                bar.update()

            outcomes = await run_evaluation(
                evaluation,
                lambda request: client.ask(model, request),
                concurrency=command.concurrency,
                on_outcome=show,
            )
    return model, outcomes


def _only_model(served: Sequence[str]) -> str:
    if len(served) != 1:
        raise ConfigError(f"the server has {len(served)} models, {', '.join(served)}: pass --model")
    return served[0]


def _output_file(name: str) -> Path:
    """A file that can be written, found out before anything is asked."""
    path = Path(name).expanduser()
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise ConfigError(f"--output {name} cannot be written: {error.strerror}") from error
    return path


def _about(command: Command, model: str, begin: datetime) -> Mapping[str, Any]:
    return {
        "task": command.task,
        "model": model,
        "data": command.data_source,
        "files": command.files,
        "limit": command.limit,
        "concurrency": command.concurrency,
        "date": begin.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "duration_s": round((datetime.now(UTC) - begin).total_seconds(), 1),
        "mimo_engine": __version__,
    }


def _print_failures(outcomes: Sequence[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        print(
            f"{len(failed)} of {len(outcomes)} requests failed and score as wrong; the first, item "
            f"{failed[0].item.id}: {failed[0].error}",
            file=sys.stderr,
        )
