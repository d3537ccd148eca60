"""The training: batches from workers, a step a batch, and what a run hands to the next.

trainer = Trainer(...)            first weights, or those of an earlier run
trainer.run(clock)
trainer.save(folder, clock)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.checkpoint.synthetic_tokenizer import Merge
from mimo_engine.demo.batches import BatchSource, Mix, TrainingBatch
from mimo_engine.demo.encoding import ExampleEncoder
from mimo_engine.demo.geometry import Geometry, geometry
from mimo_engine.demo.losses import backbone_loss, draft_loss
from mimo_engine.demo.meter import TaskMeter
from mimo_engine.demo.network import DemoNetwork, autocast
from mimo_engine.demo.optimiser import Optimiser
from mimo_engine.demo.schedule import AUDIO_UNTIL, Clock, Rates, rates
from mimo_engine.demo.state import RunRecord, save_state
from mimo_engine.demo.task import Task, task_name
from mimo_engine.demo.tokenizer import make_tokenizer
from mimo_engine.errors import ConfigError

__all__ = ["Recipe", "Trainer"]

_MAX_GRADIENT = 1.0
_LOAD_RATE = 2e-3
_MAX_SILENT_STEPS = 100
"""Batches without any sound after which it is clear that none will come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a training is made of, besides its tasks and its time."""

    seed: int = 0
    max_tokens: int = 49152
    """Of a batch, padding included."""
    peak_lr: float = 2e-3
    num_workers: int = 0
    """Processes that make batches; 0: this one does."""
    fit_vectors: int = 60_000
    """Features that codebooks are fitted to."""
    report_every: float = 20.0
    """Of the clock's unit."""


class Trainer:
    """One training. `state`: an earlier run's tensors and record; None: a beginning."""

    def __init__(
        self,
        tasks: Sequence[Task],
        merges: Sequence[Merge],
        recipe: Recipe,
        *,
        mix: Mix,
        device: torch.device,
        state: tuple[Mapping[str, torch.Tensor], RunRecord] | None = None,
    ) -> None:
        self._tasks = tasks
        self._merges = tuple(merges)
        self._recipe = recipe
        self._device = device
        self.tokenizer: Tokenizer
        self.tokenizer, vocab = make_tokenizer(merges)
        self.geometry: Geometry = geometry(vocab.ids)
        self.encoder = ExampleEncoder(self.tokenizer, self.geometry.media, dtype="bfloat16")
        self._source = BatchSource(
            tasks,
            self.encoder,
            mix=mix,
            max_tokens=recipe.max_tokens,
            pad_id=vocab.ids["<|endoftext|>"],
            seed=recipe.seed,
        )
        self.network = DemoNetwork(self.geometry)
        self.step = 0
        if state is None:
            self.network.begin(recipe.seed)
            self.network.to(device)
            self._optimisers = self._make_optimisers()
        else:
            self._resume(*state)
        self.network.train()
        self._meter = TaskMeter(list(map(task_name, tasks)), device)

    def run(self, clock: Clock) -> None:
        """Until the clock says that it is over."""
        batches = self._batches()
        next_report = self._recipe.report_every
        started, waited = time.perf_counter(), 0.0
        with tqdm(
            total=round(clock.budget.run), unit="step" if clock.budget.in_steps else "s"
        ) as bar:
            while not clock.is_over:
                if clock.progress >= AUDIO_UNTIL and not self.network.audio.is_fitted:
                    self._fit_audio(batches)
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                self._take_step(batch, clock.progress)
                clock.tick()
                bar.update(int(clock.spent) - bar.n)
                if clock.spent >= next_report or clock.is_over:
                    next_report += self._recipe.report_every
                    share = waited / (time.perf_counter() - started)
                    started, waited = time.perf_counter(), 0.0
                    tqdm.write(
                        f"{clock.spent_in_all:.0f} step {self.step} "
                        f"lr x {rates(clock.progress).backbone:.3f} batches awaited {share:.0%}"
                    )
                    tqdm.write(self._meter.report())

    def save(self, folder: Path, clock: Clock, dtype: torch.dtype, notes: dict[str, Any]) -> None:
        """Everything that `state` takes, tensors of more than a few elements in `dtype`."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for part, optimiser in self._optimisers.items():
            tensors |= {f"optimiser.{part}.{k}": v for k, v in optimiser.state().items()}
        record = RunRecord(
            merges=self._merges,
            seed=self._recipe.seed,
            step=self.step,
            spent=clock.spent_in_all,
            is_audio_fitted=self.network.audio.is_fitted,
            notes=notes,
        )
        save_state(folder, tensors, record, dtype)

    def _resume(self, tensors: Mapping[str, torch.Tensor], record: RunRecord) -> None:
        restore(self.network, tensors, record)
        self.network.to(self._device)
        self._optimisers = self._make_optimisers()
        for part, optimiser in self._optimisers.items():
            prefix = f"optimiser.{part}."
            optimiser.load(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        self.step = record.step

    def _make_optimisers(self) -> dict[str, Optimiser]:
        audio = self.network.audio
        learners = nn.ModuleDict(
            {"tokenizer": audio.tokenizer, "bridge": audio.bridge, "mel_head": audio.mel_head}
        )
        parts = {
            "text": self.network.text,
            "vision": self.network.vision,
            "audio": audio.encoder,
            "tokenizer": learners,
            "drafts": self.network.mtp,
        }
        optimisers = {}
        for name, module in parts.items():
            learned = {n: p for n, p in module.named_parameters() if p.requires_grad}
            if learned:
                optimisers[name] = Optimiser(learned)
        return optimisers

    def _batches(self) -> Iterator[TrainingBatch]:
        """From the one that the last run did not take."""
        loader = DataLoader(
            self._source,
            batch_size=None,
            sampler=range(self.step, 1 << 40),
            num_workers=self._recipe.num_workers,
            pin_memory=self._device.type == "cuda",
            multiprocessing_context="fork" if self._recipe.num_workers else None,
            prefetch_factor=4 if self._recipe.num_workers else None,
        )
        for batch in loader:
            yield batch.to(self._device)

    def _take_step(self, batch: TrainingBatch, progress: float) -> None:
        share = rates(progress)
        # The noise of a step is a function of its number, as its batch is.
        torch.manual_seed(self._recipe.seed + self.step)
        with autocast(self._device):
            hidden = self.network(batch)
            loss = backbone_loss(self.network, batch, hidden)
            total = loss.total
            drafts = draft_loss(self.network, batch, hidden) if share.drafts else None
            if drafts is not None:
                total = total + drafts.total
        total.backward()
        self._update(share)
        peak = self.network.load.even_out(_LOAD_RATE * share.backbone)
        self._meter.add(batch, loss, drafts, peak)
        self.step += 1

    def _update(self, share: Rates) -> None:
        learned = [p for p in self.network.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(learned, _MAX_GRADIENT)
        by_part = {"tokenizer": share.tokenizer, "drafts": share.drafts}
        for name, optimiser in self._optimisers.items():
            optimiser.step(self._recipe.peak_lr * by_part.get(name, share.backbone))

    def _fit_audio(self, batches: Iterator[TrainingBatch]) -> None:
        """Freeze the tokenizer, and fit its codebooks to what the next batches bring."""
        audio = self.network.audio
        audio.freeze()
        self._optimisers.pop("tokenizer", None)
        found: list[torch.Tensor] = []
        first = self.step
        while sum(map(len, found)) < self._recipe.fit_vectors:
            if not found and self.step - first > _MAX_SILENT_STEPS:
                raise ConfigError("no task with sound comes in this mix: codebooks need some")
            batch = next(batches)
            if batch.num_frames is not None:
                found.append(audio.features(batch.mels, batch.num_frames))
            self.step += 1
        lost = audio.fit(torch.cat(found), self._recipe.seed)
        tqdm.write(f"audio tokenizer fitted at step {self.step}: {lost:.1%} of the variance lost")


def restore(network: DemoNetwork, tensors: Mapping[str, torch.Tensor], record: RunRecord) -> None:
    """Put a run's weights in their places."""
    if record.is_audio_fitted:
        network.audio.freeze()
    for name, parameter in network.state_dict().items():
        parameter.copy_(tensors[f"network.{name}"])
