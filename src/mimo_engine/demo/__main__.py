"""`python -m mimo_engine.demo`: train the demo model, evaluate it, export it.

    train --minutes 8.5 --out RUN1 --total-minutes 24
    train --minutes 8.5 --out RUN2 --total-minutes 24 --resume RUN1
    export --run RUN3 --out FOLDER
    variant mxfp4 --out MODEL           the shipped model as its twin with MXFP4 experts
    variant bf16 --out MODEL            ... as plain bf16 with split projections
    acceptance                          how often its draft layers are right

A run is made to fit machines that are lent for minutes: it goes on from the folder of an earlier
one, and its own is small enough to be carried. `train` without --total-minutes is a whole training.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mimo_engine.demo.acceptance import measure_acceptance
from mimo_engine.demo.evaluate import evaluate, score_table
from mimo_engine.demo.export import DATA_DIR, export_demo, make_plain, make_twin
from mimo_engine.demo.geometry import geometry
from mimo_engine.demo.network import DemoNetwork
from mimo_engine.demo.schedule import Budget, Clock
from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.demo.state import load_state
from mimo_engine.demo.suite import demo_tasks
from mimo_engine.demo.text_tasks import TEXT_TASKS
from mimo_engine.demo.tokenizer import learn_merges, make_tokenizer, task_texts
from mimo_engine.demo.train import Recipe, Trainer, restore
from mimo_engine.errors import CheckpointError, ConfigError

_TEXTS_PER_TASK = 200
_VARIANTS = {
    "mxfp4": lambda out: make_twin(DATA_DIR / "fp8", DATA_DIR / "mxfp4", out),
    "bf16": lambda out: make_plain(DATA_DIR / "fp8", out),
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    options.command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mimo_engine.demo")
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="one run of a training, with its evaluation")
    train.set_defaults(command=_train)
    train.add_argument("--minutes", type=float, required=True, help="of training, in this run")
    train.add_argument("--total-minutes", type=float, help="of all runs; default: this one ends it")
    train.add_argument("--out", type=Path, required=True, help="folder for what a run leaves")
    train.add_argument("--resume", type=Path, help="folder of the run before")
    train.add_argument("--banks", type=Path, help="folder to keep the banks of speech in")
    train.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train.add_argument("--workers", type=int, default=0, help="processes that make batches")
    train.add_argument("--max-tokens", type=int, default=49152, help="of a batch")
    train.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    train.add_argument(
        "--mix", default="", help="MODALITY/TASK=SHARE,...: how often tasks come; else 1"
    )
    train.add_argument("--seed", type=int, help="default: 0, or that of the run that goes on")
    train.add_argument("--items", type=int, default=128, help="test examples a task")
    train.add_argument("--state-dtype", choices=sorted(_DTYPES), default="bfloat16")
    export = commands.add_parser("export", help="a run's weights as the demo's checkpoints")
    export.set_defaults(command=_export)
    export.add_argument("--run", type=Path, required=True, help="folder of the last run")
    export.add_argument("--out", type=Path, required=True, help="folder to make fp8/ and mxfp4/ in")
    variant = commands.add_parser("variant", help="the shipped model, stored in another way")
    variant.set_defaults(command=_variant)
    variant.add_argument("form", choices=sorted(_VARIANTS))
    variant.add_argument("--out", type=Path, required=True, help="a new directory")
    acceptance = commands.add_parser("acceptance", help="how often the draft layers are right")
    acceptance.set_defaults(command=_acceptance)
    acceptance.add_argument("--items", type=int, default=60, help="test examples a task")
    return parser


def _variant(options: argparse.Namespace) -> None:
    _VARIANTS[options.form](options.out)


def _acceptance(options: argparse.Namespace) -> None:
    for found in measure_acceptance(DATA_DIR / "fp8", TEXT_TASKS, items_per_task=options.items):
        shares = "  ".join(f"{share:.2f}" for share in found.shares)
        tqdm.write(f"{found.task:<20}{shares}  {found.length:.2f} tokens a step")


def _train(options: argparse.Namespace) -> None:
    banks = SpeechBanks(options.banks)
    # Here and once, so that the processes that make batches find it.
    banks.get("train")
    tasks = demo_tasks(banks)
    state = None if options.resume is None else load_state(options.resume)
    if state is None:
        seed = options.seed or 0
        merges = learn_merges(task_texts(tasks, per_task=_TEXTS_PER_TASK, seed=seed))
    else:
        seed, merges = state[1].seed, state[1].merges
        if options.seed not in (None, seed):
            raise ConfigError(f"the run to go on from has the seed {seed}: leave --seed out")
    trainer = Trainer(
        tasks,
        merges,
        Recipe(
            seed=seed,
            max_tokens=options.max_tokens,
            peak_lr=options.lr,
            num_workers=options.workers,
        ),
        mix=_mix(options.mix),
        device=torch.device(options.device),
        state=state,
    )
    before = 0.0 if state is None else state[1].spent
    total = before + 60 * options.minutes
    if options.total_minutes is not None:
        total = 60 * options.total_minutes
    clock = Clock(budget=Budget(run=60 * options.minutes, total=total), spent_before=before)
    trainer.run(clock)
    dtype = _DTYPES[options.state_dtype]
    # Before the evaluation too: what was trained is not lost with it.
    trainer.save(options.out, clock, dtype, {})
    scores = evaluate(
        trainer.network,
        tasks,
        trainer.encoder,
        trainer.tokenizer,
        device=torch.device(options.device),
        items_per_task=options.items,
    )
    tqdm.write(score_table(scores))
    notes: dict[str, Any] = {"scores": [asdict(score) for score in scores]}
    trainer.save(options.out, clock, dtype, notes)


def _mix(text: str) -> dict[str, float]:
    pairs = (pair.split("=") for pair in text.split(",") if pair)
    return {name: float(share) for name, share in pairs}


def _export(options: argparse.Namespace) -> None:
    tensors, record = load_state(options.run)
    if not record.is_audio_fitted:
        raise CheckpointError(
            f"{options.run}: the training has not come to its codebooks, so the model would hear "
            "nothing: go on with --resume"
        )
    _, vocab = make_tokenizer(record.merges)
    shape = geometry(vocab.ids)
    network = DemoNetwork(shape)
    restore(network, tensors, record)
    export_demo(options.out / "fp8", options.out / "mxfp4", network, shape, record.merges)
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    tqdm.write(f"{options.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
