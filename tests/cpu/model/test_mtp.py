"""The draft layers: equal to the slow ones of mtp_reference.py, over pages and ranks; gradients."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mtp_reference import MISTAKES, SlowDrafts
from safetensors.torch import load_file

from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.params import parameter_specs
from mimo_engine.cli.main import main
from mimo_engine.cli.random_checkpoint import SMALL_MODEL
from mimo_engine.config.model import AttentionKind, ModelConfig, load_model_config
from mimo_engine.distributed.groups import SingleRank
from mimo_engine.distributed.plan import SINGLE_RANK, ParallelPlan
from mimo_engine.kernels.attention import AttentionGroup
from mimo_engine.model.batch import ForwardBatch, LayerCache, packed_batch
from mimo_engine.model.mtp import MtpLayers, shifted_tokens, split_mtp_weights
from mimo_engine.model.text import TextModel

NUM_LAYERS = 3
WINDOW = 6
SEQUENCES = [
    torch.randint(0, 500, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (24, 9)
]


@dataclass(frozen=True, kw_only=True)
class Model:
    config: ModelConfig
    text: TextModel
    mtp: MtpLayers

    def drafts(self, batch, hidden):
        """The outputs of all layers for whole sequences, each [N, H]."""
        outputs = []
        for k in range(NUM_LAYERS):
            embeddings = self.text.embed_tokens(shifted_tokens(batch, 1 + k).token_ids)
            outputs.append(self.mtp(k, embeddings=embeddings, hidden=hidden, batch=batch))
        return outputs


def load(path, *, keep_quantised=False, plan=SINGLE_RANK, comm=None):
    config = load_model_config(path, num_visible_tokens=WINDOW)
    weights = split_mtp_weights(
        load_checkpoint(
            path,
            config,
            plan,
            dtype=torch.float32,
            keep_quantised=keep_quantised,
            num_mtp_layers=NUM_LAYERS,
        )
    )
    comm = comm or SingleRank()
    return Model(
        config=config,
        text=TextModel.from_weights(config, weights.text, plan, comm),
        mtp=MtpLayers.from_weights(config, weights.mtp, plan, comm),
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Split and unquantised, so that the reference reads it; two query heads a KV head."""
    folder = tmp_path_factory.mktemp("mtp")
    like = folder / "config.json"
    like.write_text(json.dumps({**SMALL_MODEL, "swa_num_key_value_heads": 4}))
    path = folder / "model"
    arguments = ["--like", str(like), "--layout", "split", "--format", "bf16", "--text-only"]
    assert main(["random-checkpoint", str(path), *arguments, "--num-layers", "3"]) == 0
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(checkpoint)


@pytest.fixture(scope="module")
def slow(checkpoint):
    """Makes slow drafts, with a mistake or none."""
    tensors = {}
    for file in checkpoint.glob("*.safetensors"):
        tensors |= load_file(file)
    weights = {
        name: tensor.double().numpy()
        for name, tensor in tensors.items()
        if ".mtp." in name or name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    raw = json.loads((checkpoint / "config.json").read_text())
    return lambda mistake=None: SlowDrafts(weights, raw, WINDOW, mistake)


@pytest.fixture(scope="module")
def batch():
    return packed_batch(SEQUENCES)


@pytest.fixture(scope="module")
def hidden(model, batch):
    with torch.no_grad():
        return model.text(batch)


def by_sequence(rows):
    """[N, ...] cut into the sequences' parts."""
    return rows.split([len(tokens) for tokens in SEQUENCES])


def distances(outputs, slow_drafts, hidden):
    """Of each layer, how far it lies from the slow one on the rows whose token is known."""
    slow_outputs = [
        slow_drafts.run(tokens, rows.numpy())
        for tokens, rows in zip(SEQUENCES, by_sequence(hidden), strict=True)
    ]
    errors = []
    for k, rows in enumerate(outputs):
        parts = [part[: len(part) - 1 - k] for part in by_sequence(rows)]
        expected = torch.cat([torch.from_numpy(layers[k]) for layers in slow_outputs])
        errors.append(relative_distance(torch.cat(parts), expected))
    return errors


def relative_distance(actual, expected):
    """The largest over rows: the length of the difference, over that of the expected row."""
    errors = (actual.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    return errors.max().item()


@torch.no_grad()
def test_every_layer_equals_the_slow_one(model, slow, batch, hidden):
    errors = distances(model.drafts(batch, hidden), slow(), hidden)
    assert len(errors) == NUM_LAYERS
    assert max(errors) < 1e-5


@torch.no_grad()
def test_draft_logits_are_those_of_the_targets_head(model, slow, batch, hidden):
    outputs = model.drafts(batch, hidden)
    tokens, rows = SEQUENCES[0], by_sequence(hidden)[0]
    for k, expected in enumerate(slow().run(tokens, rows.numpy())):
        logits = model.text.logits(outputs[k][: len(expected)])
        assert relative_distance(logits, torch.from_numpy(slow().logits(expected))) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_would_be_seen(model, slow, batch, hidden, mistake):
    """Agreement to 1e-5 is agreement with this definition and with none of its neighbours."""
    assert max(distances(model.drafts(batch, hidden), slow(mistake), hidden)) > 1e-2


@torch.no_grad()
def test_the_hidden_state_before_the_final_norm_is_another_input(model, slow, batch, hidden):
    seen = []
    hook = model.text.layers[-1].register_forward_hook(
        lambda _, inputs, out: seen.append(out[0] + out[1].sum(dim=1))
    )
    model.text(batch)
    hook.remove()
    assert min(distances(model.drafts(batch, seen[0]), slow(), hidden)) > 1e-2


@torch.no_grad()
def test_the_window_ends_at_its_last_visible_row(model, batch, hidden):
    row = 20  # of the first sequence, whose rows come first
    before = model.drafts(batch, hidden)
    for distance, is_visible in [(WINDOW - 1, True), (WINDOW, False)]:
        changed = hidden.clone()
        changed[row - distance] += 1
        for old, new in zip(before, model.drafts(batch, changed), strict=True):
            assert torch.equal(old[row], new[row]) != is_visible


@torch.no_grad()
def test_sequences_of_a_batch_do_not_see_each_other(model, batch, hidden):
    together = [by_sequence(rows) for rows in model.drafts(batch, hidden)]
    for index, tokens in enumerate(SEQUENCES):
        alone = model.drafts(packed_batch([tokens]), by_sequence(hidden)[index])
        for k in range(NUM_LAYERS):
            torch.testing.assert_close(alone[k], together[k][index], atol=1e-5, rtol=1e-5)


class Pages:
    """Pools for every layer, with the positions of the sequences scattered over them."""

    def __init__(self, config, lengths):
        spec = config.mtp_layer
        num_slots = sum(lengths) + 5
        scattered = torch.randperm(num_slots, generator=torch.Generator().manual_seed(0))
        self._slots = scattered[: sum(lengths)].split(lengths)
        # Large where nothing was written: what is not masked would be seen.
        self.caches = [
            LayerCache(
                k=torch.full((num_slots, spec.num_kv_heads, spec.qk_head_dim), 50.0),
                v=torch.full((num_slots, spec.num_kv_heads, spec.v_head_dim), 50.0),
            )
            for _ in range(NUM_LAYERS)
        ]

    def batch(self, pieces) -> ForwardBatch:
        """pieces: (sequence, positions), as the engine would put them: one group each."""
        groups, first_row = [], 0
        for sequence, positions in pieces:
            kv_first = max(positions.start - WINDOW + 1, 0)
            groups.append(
                AttentionGroup(
                    rows=torch.arange(first_row, first_row + len(positions))[None],
                    first_position=torch.tensor([positions.start]),
                    kv_slots=self._slots[sequence][None, kv_first : positions.stop],
                    kv_first=torch.tensor([kv_first]),
                )
            )
            first_row += len(positions)
        written = [self._slots[sequence][list(positions)] for sequence, positions in pieces]
        rows = [position for _, positions in pieces for position in positions]
        return ForwardBatch(
            token_ids=torch.zeros(len(rows), dtype=torch.int64),
            positions=torch.tensor(rows),
            groups={AttentionKind.SLIDING: groups},
            write_slots={AttentionKind.SLIDING: torch.cat(written)},
        )


def steps_of(lengths, sizes):
    """The positions of all sequences, in pieces of the given sizes, a piece each to a step."""
    steps = []
    for start, stop in pairwise(accumulate(sizes, initial=0)):
        pieces = [(i, range(start, min(stop, length))) for i, length in enumerate(lengths)]
        steps.append([piece for piece in pieces if piece[1]])
    assert sum(len(positions) for step in steps for _, positions in step) == sum(lengths)
    return steps


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[24], [1] * 24, [7, 2, 1, 4, 4, 6]])
def test_with_a_paged_cache_rows_are_what_they_are_without(model, batch, hidden, sizes):
    expected = [by_sequence(rows) for rows in model.drafts(batch, hidden)]
    pages = Pages(model.config, [len(tokens) for tokens in SEQUENCES])
    for k in range(NUM_LAYERS):
        tokens = shifted_tokens(batch, 1 + k).token_ids
        embeddings = by_sequence(model.text.embed_tokens(tokens))
        states = by_sequence(hidden)
        for step in steps_of([len(tokens) for tokens in SEQUENCES], sizes):
            pieces = {
                "embeddings": torch.cat([embeddings[i][list(rows)] for i, rows in step]),
                "hidden": torch.cat([states[i][list(rows)] for i, rows in step]),
            }
            paged, cache = pages.batch(step), pages.caches[k]
            # Drafts that were rejected: the same slots, written before with something else.
            wrong = {name: torch.randn_like(rows) for name, rows in pieces.items()}
            model.mtp(k, **wrong, batch=paged, cache=cache)
            actual = model.mtp(k, **pieces, batch=paged, cache=cache)
            wanted = torch.cat([expected[k][i][list(rows)] for i, rows in step])
            torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


def test_a_cache_without_slots_and_slots_without_a_cache_are_refused(model, batch, hidden):
    pages = Pages(model.config, [len(tokens) for tokens in SEQUENCES])
    paged = pages.batch([(0, range(24)), (1, range(9))])
    inputs = {"embeddings": hidden, "hidden": hidden}
    with pytest.raises(AssertionError, match="other kind"):
        model.mtp(0, **inputs, batch=batch, cache=pages.caches[0])
    with pytest.raises(AssertionError, match="other kind"):
        model.mtp(0, **inputs, batch=paged)


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    shift=st.integers(0, 9),
)
def test_shifted_tokens_stay_within_their_sequence(lengths, shift):
    # Ids that occur once: any wrong row shows.
    ends = accumulate(lengths, initial=1)
    sequences = [list(range(first, stop)) for first, stop in pairwise(ends)]
    shifted = shifted_tokens(packed_batch(sequences), shift)
    later = [tokens[j + shift : j + shift + 1] for tokens in sequences for j in range(len(tokens))]
    assert shifted.is_known.tolist() == [bool(token) for token in later]
    assert shifted.token_ids.tolist() == [token[0] if token else 0 for token in later]


@torch.no_grad()
def test_unknown_tokens_reach_no_row_that_is_scored(model, batch, hidden):
    for k, before in enumerate(model.drafts(batch, hidden)):
        inputs, labels = shifted_tokens(batch, 1 + k), shifted_tokens(batch, 2 + k)
        others = inputs.token_ids.masked_fill(~inputs.is_known, 123)
        after = model.mtp(k, embeddings=model.text.embed_tokens(others), hidden=hidden, batch=batch)
        assert torch.equal(before[labels.is_known], after[labels.is_known])
        assert not torch.equal(before, after)


def test_every_parameter_and_input_learns_in_the_cacheless_forward(checkpoint):
    config = load_model_config(checkpoint, num_visible_tokens=WINDOW)
    torch.manual_seed(0)
    text, mtp = TextModel(config), MtpLayers(config, NUM_LAYERS)
    for parameter in (*text.parameters(), *mtp.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    model, batch = Model(config=config, text=text, mtp=mtp), packed_batch(SEQUENCES)
    hidden = text(batch)
    hidden.retain_grad()
    losses = []
    for k, output in enumerate(model.drafts(batch, hidden)):
        labels = shifted_tokens(batch, 2 + k)
        logits = text.logits(output[labels.is_known])
        wanted = labels.token_ids[labels.is_known]
        losses.append(torch.nn.functional.cross_entropy(logits, wanted))
    torch.stack(losses).sum().backward()
    gradients = {name: parameter.grad for name, parameter in mtp.named_parameters()}
    gradients |= {"hidden": hidden.grad, "embedding": text.embed_tokens.weight.grad}
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
    # The last two rows of a sequence have no token that even the first layer could be scored by.
    for rows in by_sequence(hidden.grad):
        assert (rows[:-2].abs().amax(dim=1) > 0).all()
        assert not rows[-2:].any()


def test_the_layers_have_exactly_the_parameters_that_the_loader_fills(model):
    with torch.device("meta"):
        mtp = MtpLayers(model.config, NUM_LAYERS)
    specs = parameter_specs(model.config, num_mtp_layers=NUM_LAYERS)
    shapes = {f"mtp.{name}": tuple(weight.shape) for name, weight in mtp.named_parameters()}
    wanted = {name: spec.shape for name, spec in specs.items() if name.startswith("mtp.")}
    assert shapes == wanted


@torch.no_grad()
def test_fused_fp8_weights_decoded_at_load_and_at_each_use_give_the_same_bits(tmp_path):
    path = tmp_path / "model"
    arguments = ["--format", "fp8", "--text-only", "--num-layers", "2"]
    assert main(["random-checkpoint", str(path), *arguments]) == 0
    batch = packed_batch(SEQUENCES)
    once, each = (
        model.drafts(batch, model.text(batch))
        for model in (load(path), load(path, keep_quantised=True))
    )
    for k in range(NUM_LAYERS):
        assert once[k].std() > 0.1
        assert torch.equal(once[k], each[k])


def test_weights_without_draft_layers_make_none(model):
    assert len(MtpLayers.from_weights(model.config, {}).layers) == 0


class ThreadComm:
    """One of several ranks that are threads of this process."""

    def __init__(self, tp_rank, board, barrier):
        self._tp_rank = tp_rank
        self._board = board
        self._barrier = barrier

    def _everyones(self, x):
        self._board[self._tp_rank] = x.clone()
        self._barrier.wait()
        parts = list(self._board)
        self._barrier.wait()
        return parts

    def all_reduce(self, x):
        return torch.stack(self._everyones(x)).sum(dim=0)

    def reduce_parts(self, parts):
        return self.all_reduce(parts.sum(dim=1, keepdim=True))

    def all_gather(self, x):
        return torch.cat(self._everyones(x), dim=-1)

    def broadcast(self, x):
        return x.copy_(self._everyones(x)[0])


# 2 cuts heads plainly; 3 pads heads and MLP blocks with zeros.
@pytest.mark.parametrize("tp_size", [2, 3])
def test_ranks_together_compute_what_one_rank_computes(checkpoint, model, batch, hidden, tp_size):
    board = [torch.empty(0)] * tp_size
    barrier = threading.Barrier(tp_size, timeout=60)

    @torch.no_grad()
    def run(tp_rank):
        plan = ParallelPlan(tp_size=tp_size, tp_rank=tp_rank)
        rank = load(checkpoint, plan=plan, comm=ThreadComm(tp_rank, board, barrier))
        return rank.drafts(batch, hidden)

    with torch.no_grad():
        expected = model.drafts(batch, hidden)
    with ThreadPoolExecutor(tp_size) as pool:
        for outputs in pool.map(run, range(tp_size)):
            for k in range(NUM_LAYERS):
                torch.testing.assert_close(outputs[k], expected[k], atol=1e-5, rtol=1e-5)
