"""The demo model's tokenizer: the family's, with merges learned from the texts of the tasks.

Learning takes the `tokenizers` library and a moment. What it learned is a list of merges, which
goes from run to run and decides the files that `write_synthetic_tokenizer` writes.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import models, trainers

from mimo_engine.chat.template import ChatTemplate, family_template
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.checkpoint.synthetic_tokenizer import (
    Merge,
    SyntheticVocab,
    write_synthetic_tokenizer,
)
from mimo_engine.demo.rendering import render
from mimo_engine.demo.task import Task

__all__ = ["NUM_TOKENS", "learn_merges", "make_tokenizer", "task_texts", "write_tokenizer"]

NUM_TOKENS = 960
"""At most, special tokens included."""

_SPECIAL = re.compile(r"<\|?[a-z_]+\|?>|</[a-z_]+>")


def task_texts(tasks: Sequence[Task], *, per_task: int, seed: int) -> Iterator[str]:
    """Rendered conversations, prompt and completion, of training examples."""
    template = ChatTemplate(family_template())
    for task in tasks:
        rng = random.Random(f"tokenizer {seed} {task.name}")
        for _ in range(per_task):
            rendered = render(task.make(rng, "train"), template)
            yield "".join(rendered.texts) + rendered.completion


def learn_merges(texts: Iterable[str]) -> list[Merge]:
    """Byte-pair encoding over `texts`, whose special tokens are cut out."""
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_tokenizer(Path(folder), chat_template="", merges=[])
        family = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    num_added = len(family["added_tokens"])
    bare = {**family, "added_tokens": []}
    learner = tokenizers.Tokenizer.from_str(json.dumps(bare))
    learner.model = models.BPE()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS - num_added,
        initial_alphabet=list(family["model"]["vocab"]),
        show_progress=False,
    )
    pieces = (piece for text in texts for piece in _SPECIAL.split(text) if piece)
    learner.train_from_iterator(pieces, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    return [(first, second) for first, second in learned]


def write_tokenizer(directory: Path, merges: Sequence[Merge]) -> SyntheticVocab:
    """Write the tokenizer's files, chat template included, into `directory`."""
    return write_synthetic_tokenizer(
        directory, chat_template=family_template(), vocab_size=NUM_TOKENS, merges=merges
    )


def make_tokenizer(merges: Sequence[Merge]) -> tuple[Tokenizer, SyntheticVocab]:
    """The tokenizer that these merges make, as the engine reads it."""
    with tempfile.TemporaryDirectory() as folder:
        vocab = write_tokenizer(Path(folder), merges)
        return Tokenizer.from_dir(folder), vocab
