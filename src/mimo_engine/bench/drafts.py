"""What drafts are worth: tokens a second with and without them, on the demo model's own tasks.

    fixed    0, 1, 2 and 3 drafts in every step
    auto     as many as the controller decides (the default of the engine)
    failing  the controller on a copy of the model whose drafts are always wrong

All engines answer the same held-out prompts, batch by batch, in turns: a machine that is slow for a
while is slow for all of them. Ratios are medians over the rounds of one engine's time against
another's in the same round; "A/A" is the spread of two engines without drafts. Every text must be
the one without drafts, but for texts whose likeliest tokens were equally likely.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from safetensors.torch import load_file, save_file

from mimo_engine.bench.record import append_result
from mimo_engine.config.engine import CacheConfig, SpeculativeConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.demo.text_tasks import TEXT_TASKS
from mimo_engine.llm import LLM
from mimo_engine.utils.hub import DEMO, resolve_model

__all__ = ["main", "measure"]

_BATCHES = (1, 4, 16)
_NUM_DRAFTS = 3
_PARAMS = SamplingParams(temperature=0.0, max_tokens=96)
_NUM_WRONG = 0.02
"""Texts that may differ from those without drafts: equally likely tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Seconds and tokens of one engine in one round at one batch size."""

    seconds: float
    num_tokens: int


def measure(num_rounds: int, num_prompts: int) -> dict[str, dict[int, list[Round]]]:
    """By engine and batch size, a `Round` each. The prompts of a round are new to all."""
    with tempfile.TemporaryDirectory() as folder:
        engines = _engines(Path(folder))
        found: dict[str, dict[int, list[Round]]] = {
            name: {batch: [] for batch in _BATCHES} for name in engines
        }
        num_texts = num_wrong = 0
        for number in range(-1, num_rounds):
            prompts = _prompts(number, num_prompts)
            for batch in _BATCHES:
                texts = {}
                for name in _turns(list(engines), number):
                    one, texts[name] = _run(engines[name], prompts, batch)
                    # The round before the first warms up.
                    if number >= 0:
                        found[name][batch].append(one)
                num_texts += len(prompts) * (len(engines) - 1)
                num_wrong += sum(
                    text != right
                    for name in engines
                    for text, right in zip(texts[name], texts["off"], strict=True)
                )
        assert num_wrong <= _NUM_WRONG * num_texts, f"{num_wrong} of {num_texts} texts differ"
        for engine in engines.values():
            engine.close()
    return found


def _engines(folder: Path) -> dict[str, LLM]:
    model = resolve_model(DEMO)
    failing = _with_wrong_drafts(model, folder / "failing")
    modes = {
        "off": SpeculativeConfig(speculative="off"),
        "off again": SpeculativeConfig(speculative="off"),
        **{
            f"fixed {depth}": SpeculativeConfig(speculative="mtp", max_draft_tokens=depth)
            for depth in range(1, _NUM_DRAFTS + 1)
        },
        "auto": SpeculativeConfig(),
    }
    engines = {name: _load(model, mode) for name, mode in modes.items()}
    engines["failing"] = _load(failing, SpeculativeConfig())
    return engines


def _load(model: Path, mode: SpeculativeConfig) -> LLM:
    cache = CacheConfig(kv_cache_gib=0.25, prefix_caching=False)
    return LLM(str(model), cache=cache, speculative=mode)


def _with_wrong_drafts(model: Path, out: Path) -> Path:
    """A copy whose draft layers prefer the least likely token."""
    shutil.copytree(model, out)
    for path in out.glob("*.safetensors"):
        weights = load_file(path)
        ends = [name for name in weights if name.endswith("final_layernorm.weight")]
        for name in ends:
            weights[name] = -weights[name]
        if ends:
            save_file(weights, path, {"format": "pt"})
    return out


def _prompts(number: int, count: int) -> list[str]:
    rng = random.Random(f"drafts {number}")
    tasks = [task for task in TEXT_TASKS if "tool" not in task.name]
    examples = [tasks[i % len(tasks)].make(rng, "test") for i in range(count)]
    return [str(example.messages[-1]["content"]) for example in examples]


def _turns(names: list[str], number: int) -> list[str]:
    """Another order each round, so that no engine always comes after the same one."""
    return random.Random(number).sample(names, len(names))


def _run(engine: LLM, prompts: Sequence[str], batch: int) -> tuple[Round, list[list[int]]]:
    """Answer all prompts, `batch` at a time."""
    texts: list[list[int]] = []
    started = perf_counter()
    for first in range(0, len(prompts), batch):
        part = [[{"role": "user", "content": text}] for text in prompts[first : first + batch]]
        texts += [output.token_ids for output in engine.chat(part, _PARAMS)]
    seconds = perf_counter() - started
    return Round(seconds=seconds, num_tokens=sum(map(len, texts))), texts


def _speed(rounds: Sequence[Round]) -> float:
    return statistics.median(one.num_tokens / one.seconds for one in rounds)


def _ratio(rounds: Sequence[Round], others: Sequence[Round]) -> float:
    """How much faster than the others: the median over the rounds."""
    return statistics.median(
        other.seconds / one.seconds for one, other in zip(rounds, others, strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and append one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m mimo_engine.bench.drafts")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=32, help="of a round")
    options = parser.parse_args(arguments)
    found = measure(options.rounds, options.prompts)
    print(f"{'engine':<12}" + "".join(f"{f'batch {batch}':>26}" for batch in _BATCHES))
    results: dict[str, dict[str, float]] = {}
    speeds: dict[str, dict[str, float]] = {}
    for name, by_batch in found.items():
        cells = []
        for batch, rounds in by_batch.items():
            ratio = _ratio(rounds, found["off"][batch])
            cells.append(f"{_speed(rounds):>10.0f} tok/s  x {ratio:5.3f}")
            results.setdefault(name, {})[f"batch {batch}"] = round(ratio, 4)
            speeds.setdefault(name, {})[f"batch {batch}"] = round(_speed(rounds), 1)
        print(f"{name:<12}" + "".join(f"{cell:>26}" for cell in cells))
    best = []
    for batch in _BATCHES:
        fixed = [found[name][batch] for name in ("off", *_fixed_names())]
        best.append(min(_ratio(found["auto"][batch], rounds) for rounds in fixed))
    line = "".join(f"{f'x {ratio:5.3f}':>26}" for ratio in best)
    print(f"{'auto / best':<12}{line}")
    results["auto against the best fixed"] = {
        f"batch {batch}": round(ratio, 4) for batch, ratio in zip(_BATCHES, best, strict=True)
    }
    config = {"rounds": options.rounds, "prompts": options.prompts, "model": DEMO}
    append_result(
        "drafts",
        {"config": config, "tokens_per_s": speeds, "speed_against_off": results},
    )


def _fixed_names() -> list[str]:
    return [f"fixed {depth}" for depth in range(1, _NUM_DRAFTS + 1)]


if __name__ == "__main__":
    main()
