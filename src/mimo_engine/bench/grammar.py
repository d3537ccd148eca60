"""What a grammar costs a token: its mask, and taking the token, against the forward pass.

Two vocabularies: the small model's own, and one of the real size. The second has the family's form
and random words, because only sizes matter to a trie. A forward pass that takes longer hides the
mask, which is made beside it.
"""

from __future__ import annotations

import json
import random
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns

from mimo_engine.bench.record import append_result
from mimo_engine.bench.step import measure as measure_step
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.sampling import GrammarSpec, SamplingParams
from mimo_engine.grammar.library import GrammarCompiler
from mimo_engine.grammar.tool_grammar import tool_grammar
from mimo_engine.llm import LLM

__all__ = ["main", "measure"]

_REAL_VOCABULARY = 151_675
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 4},
        "score": {"type": ["number", "null"]},
    },
    "required": ["name", "age", "tags", "score"],
    "additionalProperties": False,
}
_TOOL = {"type": "function", "function": {"name": "save", "parameters": _PERSON}}
SPECS = {
    "json object": GrammarSpec(kind="json_schema", text='{"type": "object"}'),
    "json schema": GrammarSpec(kind="json_schema", text=json.dumps(_PERSON)),
    "regex": GrammarSpec(kind="regex", text=r"[A-Z][a-z]{2,30}( [A-Z][a-z]{2,30}){1,20}"),
    "tool call": tool_grammar([_TOOL]),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Of one grammar over one vocabulary; times in microseconds."""

    grammar: str
    vocabulary: int
    compile_us: float
    mask_us: float
    """Median over the tokens of random outputs."""
    mask_p99_us: float
    accept_us: float
    num_tokens: int


def measure(compiler: GrammarCompiler, name: str, *, num_tokens: int) -> Measurement:
    """Random outputs under the grammar `name`, `num_tokens` in all."""
    draw = random.Random(0)
    start = perf_counter_ns()
    matcher = compiler.matcher(SPECS[name])
    compile_us = (perf_counter_ns() - start) / 1e3
    mask_us: list[float] = []
    accept_us: list[float] = []
    while len(mask_us) < num_tokens:
        start = perf_counter_ns()
        mask = matcher.mask()
        mask_us.append((perf_counter_ns() - start) / 1e3)
        token_id = _draw(mask, draw)
        start = perf_counter_ns()
        accepted = matcher.accept(token_id)
        accept_us.append((perf_counter_ns() - start) / 1e3)
        assert accepted
        if token_id in compiler.end_ids:
            matcher = compiler.matcher(SPECS[name])
    return Measurement(
        grammar=name,
        vocabulary=compiler.num_tokens,
        compile_us=compile_us,
        mask_us=statistics.median(mask_us),
        mask_p99_us=statistics.quantiles(mask_us, n=100)[98],
        accept_us=statistics.median(accept_us),
        num_tokens=num_tokens,
    )


def _draw(mask: bytes, draw: random.Random) -> int:
    """An allowed token: from a random place on, the first."""
    bits = int.from_bytes(mask, "little")
    place = draw.randrange(bits.bit_length())
    bits = bits >> place << place
    return (bits & -bits).bit_length() - 1


def real_size_tokenizer(tokenizer_json: str) -> str:
    """tokenizer.json of the family's form, its vocabulary filled up with words of 2 to 9 letters.

    Merges are left out: masks and tries do not read them.
    """
    content = json.loads(tokenizer_json)
    draw = random.Random(0)
    vocab: dict[str, int] = dict.fromkeys(content["model"]["vocab"], 0)
    added = content["added_tokens"]
    while len(vocab) < _REAL_VOCABULARY - len(added):
        letters = draw.choices("etaoinshrdlucmfw", k=draw.randint(2, 9))
        vocab.setdefault(draw.choice(("", "Ġ")) + "".join(letters).title(), 0)
        vocab.setdefault(draw.choice(("", "Ġ")) + "".join(letters), 0)
    for place, token in enumerate(added):
        token["id"] = len(vocab) + place
    content["model"]["vocab"] = {token: token_id for token_id, token in enumerate(vocab)}
    content["model"]["merges"] = []
    return json.dumps(content)


def main(model: str) -> None:
    """Print the table and append one JSON line."""
    llm = LLM(model, device="cpu")
    tokenizer_json = Tokenizer.from_dir(Path(model)).to_json()
    end_ids = llm.tokenizer.stop_token_ids()
    small = GrammarCompiler(tokenizer_json, num_tokens=llm.tokenizer.num_tokens, end_ids=end_ids)
    real_json = real_size_tokenizer(tokenizer_json)
    num_tokens = 1 + max(token["id"] for token in json.loads(real_json)["added_tokens"])
    real = GrammarCompiler(real_json, num_tokens=num_tokens, end_ids=[num_tokens - 1])
    rows = [
        measure(compiler, name, num_tokens=1000) for compiler in (small, real) for name in SPECS
    ]
    greedy = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
    step = measure_step(llm, 1, greedy, num_steps=50)
    print(f"the small model's forward pass, batch 1: {step.model_us:.0f} us")
    print(
        f"{'grammar':>12} {'vocabulary':>10} {'compile us':>10} {'mask us':>8} {'p99':>7} "
        f"{'accept us':>9} {'mask/forward':>12}"
    )
    for row in rows:
        print(
            f"{row.grammar:>12} {row.vocabulary:>10} {row.compile_us:>10.0f} {row.mask_us:>8.1f} "
            f"{row.mask_p99_us:>7.0f} {row.accept_us:>9.1f} {row.mask_us / step.model_us:>12.1%}"
        )
    append_result(
        "grammar",
        {"forward_us": step.model_us, "rows": [asdict(row) for row in rows]},
    )
