"""How many tokens a verification yields, task by task, at three drafts in every step.

    recomputed  rows whose following tokens were guesses are computed again once these are known
    left        they stay as they were (`--no-recompute-boundary`)

Held-out examples of all tasks of the demo model, greedy, 16 at a time. The acceptance length is
1 + accepted / verifications, 1 to 4; a verification of fewer than three drafts (the last before
max_tokens) counts for its part. `python -m mimo_engine.demo acceptance` measures the same without
an engine, where every token before is the right one.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

from mimo_engine.bench.answers import alike, chat
from mimo_engine.bench.record import append_result
from mimo_engine.config.engine import CacheConfig, SchedulerConfig, SpeculativeConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.demo.suite import demo_tasks
from mimo_engine.demo.task import Example, task_name
from mimo_engine.llm import LLM
from mimo_engine.utils.hub import DEMO

__all__ = ["Acceptance", "main", "measure"]

_NUM_DRAFTS = 3
_BATCH = 16
_PARAMS = SamplingParams(temperature=0.0, max_tokens=128)


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """Of one task, in one engine."""

    num_drafted: int
    num_accepted: int
    num_tokens: int

    @property
    def length(self) -> float:
        """1 where nothing was drafted."""
        return 1 + _NUM_DRAFTS * self.num_accepted / max(1, self.num_drafted)


def measure(num_items: int) -> dict[str, dict[str, Acceptance]]:
    """By task and engine (recomputed, left)."""
    found: dict[str, dict[str, Acceptance]] = {}
    for name, recompute in (("recomputed", True), ("left", False)):
        engine = LLM(
            DEMO,
            cache=CacheConfig(kv_cache_gib=0.25, prefix_caching=False),
            scheduler=SchedulerConfig(max_num_seqs=_BATCH),
            speculative=SpeculativeConfig(
                speculative="mtp", max_draft_tokens=_NUM_DRAFTS, recompute_boundary=recompute
            ),
        )
        for task in demo_tasks():
            rng = random.Random(f"acceptance bench {task_name(task)}")
            examples = [task.make(rng, "test") for _ in range(num_items)]
            found.setdefault(task_name(task), {})[name] = _of_task(engine, examples)
        engine.close()
    return found


def _of_task(engine: LLM, examples: Sequence[Example]) -> Acceptance:
    before = engine.core.stats().drafts
    num_tokens = 0
    for group in alike(examples):
        outputs = chat(engine, [examples[i] for i in group], _PARAMS)
        num_tokens += sum(len(output.token_ids) for output in outputs)
    after = engine.core.stats().drafts
    assert before is not None
    assert after is not None
    return Acceptance(
        num_drafted=after.num_drafted - before.num_drafted,
        num_accepted=after.num_accepted - before.num_accepted,
        num_tokens=num_tokens,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and append one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m mimo_engine.bench.acceptance")
    parser.add_argument("--items", type=int, default=24, help="of a task")
    options = parser.parse_args(arguments)
    found = measure(options.items)
    print(f"{'task':<24}{'tokens':>8}{'recomputed':>12}{'left':>8}")
    for task, by_engine in found.items():
        own, other = by_engine["recomputed"], by_engine["left"]
        print(f"{task:<24}{own.num_tokens:>8}{own.length:>12.3f}{other.length:>8.3f}")
    totals = {name: _sum([one[name] for one in found.values()]) for name in ("recomputed", "left")}
    line = "".join(
        f"{total.length:>{width}.3f}" for total, width in zip(totals.values(), (12, 8), strict=True)
    )
    print(f"{'all':<24}{totals['recomputed'].num_tokens:>8}{line}")
    lengths = {
        task: {name: round(one.length, 4) for name, one in by_engine.items()}
        for task, by_engine in {**found, "all": totals}.items()
    }
    config = {"items": options.items, "num_drafts": _NUM_DRAFTS, "model": DEMO}
    append_result("acceptance", {"config": config, "acceptance_length": lengths})


def _sum(parts: Sequence[Acceptance]) -> Acceptance:
    return Acceptance(
        num_drafted=sum(part.num_drafted for part in parts),
        num_accepted=sum(part.num_accepted for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
    )


if __name__ == "__main__":
    main()
