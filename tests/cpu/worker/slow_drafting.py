"""What the draft layers should have guessed: from mtp.md 5.3 to 5.5, without cache, page or chunk.

`DraftWatch` keeps, of every step of an engine, the tokens that a request had and the drafts that
were made for it. `SlowDrafting` makes these drafts once more: one pass of the target over all
tokens but the last, and each draft layer (tests/cpu/model/mtp_reference.py) over all rows that the
last one sees, with the tokens that are known and the drafts of the layers before it.
"""

import itertools
import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from mtp_reference import SlowDrafts
from safetensors.torch import load_file, save_file

from mimo_engine.cli.main import main
from mimo_engine.cli.random_checkpoint import SMALL_MODEL
from mimo_engine.messages import NewRequest
from mimo_engine.model.batch import packed_batch
from mimo_engine.scheduler.plan import StepRow
from mimo_engine.worker.runner import Done

NUM_LAYERS = 3
# Of 512 tokens: the head is always loudly for one of these two and against the other, so nearly all
# that is sampled or drafted is one of them. And a seed with which drafts are often right by chance.
LOUD_TOKENS = (7, 400)
SEED = "12"
TIE = 1e-4

TINY_MODEL = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "hybrid_layer_pattern": [0, 1, 1, 0],
    "moe_layer_freq": [0, 1, 1, 1],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "v_head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 24,
    "swa_v_head_dim": 16,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "max_position_embeddings": 1024,
}


def make_tiny_checkpoint(folder):
    """Split and unquantised, so that the slow layers read it; returns its path."""
    like, path = folder / "config.json", folder / "model"
    like.write_text(json.dumps({**SMALL_MODEL, **TINY_MODEL}))
    arguments = ["--like", str(like), "--layout", "split", "--format", "bf16", "--text-only"]
    arguments += ["--seed", SEED]
    assert main(["random-checkpoint", str(path), *arguments]) == 0
    for file in path.glob("*.safetensors"):
        weights = load_file(file)
        if (head := weights.get("lm_head.weight")) is not None:
            first, second = LOUD_TOKENS
            loud = 2 * head[first]
            head *= 0.1
            head[first], head[second] = loud, -loud
            save_file(weights, file, {"format": "pt"})
    return path


@dataclass(frozen=True, kw_only=True)
class Made:
    """The drafts that one request was given in one step."""

    request: int
    """Requests are numbered as they were admitted, again after each preemption."""
    row: StepRow
    tokens: tuple[int, ...]
    """All that were known when the drafts were made; the last has no hidden state yet."""
    drafts: tuple[int, ...]
    proposals: tuple[torch.Tensor, ...]
    """What they were drawn from; empty: the likeliest."""
    temperature: float
    num_accepted: int
    """Of the drafts that were verified in the same step."""

    @property
    def last_row(self):
        return len(self.tokens) - 2

    def is_window_whole(self, window):
        """Whether all rows of the window have something of the draft layers."""
        return self.row.draft_visible_from <= max(0, self.last_row - window + 1)


class DraftWatch:
    """Wraps the executor of an engine that is not parallel."""

    def __init__(self, llm):
        self.made: list[Made] = []
        self.plans = []
        self._worker = llm.core.executor.worker
        self._launch = llm.core.executor.launch
        self._numbers = itertools.count()
        self._request_of = {}
        llm.core.executor.launch = self._watched

    def _watched(self, plan):
        self.plans.append(plan)
        result = self._launch(plan).result()
        for admission in plan.admissions:
            self._request_of[admission.slot] = next(self._numbers)
        for row, done in zip(plan.rows, result.rows, strict=True):
            state = self._worker.runner.inputs.state(row.slot)
            if not done.token_ids:
                continue
            assert len(state.drafts) == row.num_proposals <= NUM_LAYERS
            assert len(state.draft_proposals) in (0, len(state.drafts))
            if row.num_proposals:
                self.made.append(
                    Made(
                        request=self._request_of[row.slot],
                        row=row,
                        tokens=tuple(state.token_ids),
                        drafts=tuple(state.drafts),
                        proposals=tuple(state.draft_proposals),
                        temperature=state.params.temperature,
                        num_accepted=len(done.token_ids) - 1,
                    )
                )
        return Done(result)

    @property
    def acceptance(self):
        """How often so many drafts were accepted, where three were verified."""
        return Counter(made.num_accepted for made in self.made if made.row.num_drafts == 3)


@dataclass
class Verdict:
    num_drafts: int = 0
    num_ties: int = 0
    wrong: list = field(default_factory=list)
    """(what was made, layer, distance): the logit that the draft lacks to be the best, or the
    largest difference of the probabilities that it was drawn from."""


class SlowSteps(SlowDrafts):
    def guess(self, layer, tokens, hidden):
        """Logits of the last row; tokens of all rows and 1 + layer more."""
        return self.logits(self._layer(layer, tokens, hidden)[-1])


class SlowDrafting:
    """Of one checkpoint. window: tokens that a sliding layer sees."""

    def __init__(self, path, model, window, num_live_tokens):
        """model: the target, whose cacheless pass is proven elsewhere."""
        tensors = {}
        for file in path.glob("*.safetensors"):
            tensors |= load_file(file)
        self._weights = {
            name: tensor.double().numpy()
            for name, tensor in tensors.items()
            if ".mtp." in name or name in ("model.embed_tokens.weight", "lm_head.weight")
        }
        self._raw = json.loads((path / "config.json").read_text())
        self._model = model
        self._window = window
        self._num_live_tokens = num_live_tokens

    def compare(self, made, mistake=None) -> Verdict:
        """mistake: one of mtp_reference's, of the slow layers."""
        slow = SlowSteps(self._weights, self._raw, self._window, mistake)
        verdict = Verdict()
        hidden_states: dict[int, tuple[tuple[int, ...], np.ndarray]] = {}
        # The longest first: no hidden state depends on later tokens, so it serves all of a request.
        for one in sorted(made, key=lambda one: len(one.tokens), reverse=True):
            if one.request not in hidden_states:
                hidden_states[one.request] = (one.tokens, self._hidden(one.tokens[:-1]))
            tokens, hidden = hidden_states[one.request]
            assert tokens[: len(one.tokens)] == one.tokens
            self._compare(slow, one, hidden[: len(one.tokens) - 1], verdict)
        return verdict

    @torch.inference_mode()
    def _hidden(self, tokens):
        return self._model(packed_batch([tokens])).double().numpy()

    def _compare(self, slow, one, hidden, verdict):
        # A few rows more than the last one sees: which ones those are is the slow layer's matter.
        first = max(one.row.draft_visible_from, one.last_row - self._window - 2, 0)
        for layer, draft in enumerate(one.drafts):
            tokens = [*one.tokens, *one.drafts[:layer]]
            logits = slow.guess(layer, tokens[first:], hidden[first:])[: self._num_live_tokens]
            verdict.num_drafts += 1
            if one.proposals:
                weights = np.exp((logits - logits.max()) / one.temperature)
                drawn_from = one.proposals[layer].double().numpy()
                distance = abs(weights / weights.sum() - drawn_from).max()
                assert drawn_from[draft] > 0
            else:
                distance = logits.max() - logits[draft]
                verdict.num_ties += 0 < distance <= TIE
            if distance > TIE:
                verdict.wrong.append((one, layer, float(distance)))


def play(llm, requests, *, after_step=None):
    """Run requests {name: (first step, prompt, params)} by hand; the tokens by name."""
    waiting = dict(requests)
    tokens = {name: [] for name in requests}
    for step in itertools.count():
        for name, (first_step, prompt, params) in list(waiting.items()):
            if first_step <= step:
                del waiting[name]
                llm.core.add(NewRequest(request_id=name, prompt_token_ids=prompt, params=params))
        for output in llm.core.step():
            assert output.finish_reason != "error", output.error
            tokens[output.request_id] += output.token_ids
        if after_step is not None:
            after_step()
        if not waiting and not llm.core.has_work:
            return tokens
    raise AssertionError
