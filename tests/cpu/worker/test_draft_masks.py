"""What a draft runs into in a grammar happens to no request before the draft's token has come."""

import pytest
import torch

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.sampling import GrammarSpec, SamplingParams
from mimo_engine.errors import RequestError
from mimo_engine.grammar.constraint import make_constraint
from mimo_engine.grammar.library import GrammarCompiler
from mimo_engine.scheduler.plan import Admission
from mimo_engine.worker.inputs import SlotState
from mimo_engine.worker.masks import ConstraintTable, SamplingSlot

# Each ends after some tokens: a mask takes too many items of the parser, ...
AMBIGUOUS = (
    f"start: w\nw: {' | '.join(' '.join(['w'] * length) for length in range(2, 8))} | /[a-z]/"
)
# ... or the mask allows a token, "!", behind which a row of the parser is too long.
WIDE = f'start: /[a-z]/* "!" wide\nwide: {" | ".join(f"/{i}/ /z/" for i in range(2500))}'


@pytest.fixture(scope="module")
def tokenizer(random_path):
    return Tokenizer.from_dir(random_path)


@pytest.fixture(scope="module")
def compiler(tokenizer):
    return GrammarCompiler(
        tokenizer.to_json(), num_tokens=tokenizer.num_tokens, end_ids=tokenizer.stop_token_ids()
    )


@pytest.fixture
def step(compiler, tokenizer):
    """A request of `grammar`, and its masks after `text` with the drafts `drafts`."""
    table = ConstraintTable(compiler, num_tokens=tokenizer.num_tokens)
    states = {}

    def masks(grammar, text, drafts=""):
        ids = [tokenizer.encode(letter)[0] for letter in text]
        if grammar not in states:
            params = SamplingParams(grammar=GrammarSpec(kind="lark", text=grammar))
            state = SlotState(params=params, seed=0, stop_ids=(), num_prompt_tokens=0)
            states[grammar] = len(states), state
            table.apply([_admission(len(states) - 1, params)])
            table._slots[len(states) - 1].result()
        slot, state = states[grammar]
        state.token_ids = ids
        state.drafts = [tokenizer.encode(letter)[0] for letter in drafts]
        slots = {slot: SamplingSlot(state, len(drafts))}
        table.start(slots)
        return slot, table.finish(slots)

    return masks


def _admission(slot, params):
    return Admission(
        slot=slot,
        token_ids=(),
        num_prompt_tokens=0,
        params=params,
        sample_seed=0,
        stop_ids=(),
    )


def outcomes(compiler, tokenizer, grammar, text):
    """What comes after each beginning of `text`, without drafts: a mask or an error."""
    params = SamplingParams(grammar=GrammarSpec(kind="lark", text=grammar))
    constraint = make_constraint(params, compiler)
    found = []
    try:
        for letter in text:
            found.append(constraint.mask())
            assert constraint.accept(tokenizer.encode(letter)[0])
        found.append(constraint.mask())
    except RequestError as error:
        found.append(str(error))
    return found


@pytest.mark.parametrize(
    ("grammar", "text", "reason"),
    [(AMBIGUOUS, "abcdefghij" * 5, "Too many items"), (WIDE, "abcd!", "Current row")],
    ids=["in the mask behind a token", "in taking a token"],
)
def test_a_limit_met_by_a_draft_ends_the_drafts_and_not_the_request(
    compiler, tokenizer, step, grammar, text, reason
):
    alone = outcomes(compiler, tokenizer, grammar, text)
    # After so many tokens nothing may come.
    end = len(alone) - 1
    assert end > 4
    assert reason in alone[end]
    for start in range(end + 1):
        slot, masks = step(grammar, text[:start], text[start : start + 3])
        if start == end:
            assert masks.error(slot) == alone[end]
            continue
        num_drafts = min(end - start, len(text[start : start + 3]))
        assert masks.error(slot) is None
        assert masks.num_drafts(slot, 3) == num_drafts
        # The token behind the last draft is of no account, the draft itself is.
        num_tokens = min(end - start, 1 + num_drafts)
        assert masks.num_tokens(slot, num_drafts) == num_tokens
        rows = masks.tensor({slot: num_drafts}, torch.device("cpu"))
        assert rows.shape[0] == 1 + num_drafts
        for row, mask in zip(rows[:num_tokens], alone[start:], strict=False):
            assert row.numpy().tobytes() == mask
        # Another draft, of the same state: what the first ones met is gone.
        _, masks = step(grammar, text[:start], "!a" if grammar is AMBIGUOUS else "+a")
        assert (masks.error(slot), masks.num_drafts(slot, 2), masks.num_tokens(slot, 1)) == (
            None,
            1,
            2,
        )
