"""A small random model, its vocabulary, and walks through grammars without a model."""

import random
import sys
from pathlib import Path

import pytest

from mimo_engine import LLM
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.cli.main import main
from mimo_engine.config.sampling import ThinkingSpec
from mimo_engine.grammar.library import GrammarCompiler

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("grammar") / "model"
    assert main(["random-checkpoint", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def llm(model_dir):
    return LLM(str(model_dir), device="cpu")


@pytest.fixture(scope="session")
def tokenizer(model_dir):
    return Tokenizer.from_dir(model_dir)


@pytest.fixture(scope="session")
def compiler(tokenizer):
    return GrammarCompiler(
        tokenizer.to_json(), num_tokens=tokenizer.num_tokens, end_ids=tokenizer.stop_token_ids()
    )


@pytest.fixture(scope="session")
def thinking(tokenizer):
    """Makes a ThinkingSpec of this vocabulary."""

    def make(budget=None, banned=("<tool_call>", "</tool_call>")):
        return ThinkingSpec(
            start_id=tokenizer.id_of("<think>"),
            end_id=tokenizer.id_of("</think>"),
            budget=budget,
            banned_ids=tuple(tokenizer.id_of(name) for name in banned),
        )

    return make


@pytest.fixture(scope="session")
def spell(tokenizer):
    """Text as the tokens of its bytes: tags are text here, not markers."""
    by_byte = {tokenizer.token_bytes(i): i for i in reversed(range(tokenizer.num_tokens))}

    def ids(text):
        return [by_byte[bytes([byte])] for byte in text.encode()]

    return ids


@pytest.fixture(scope="session")
def walk(compiler, tokenizer, spell):
    """Texts of a grammar, each token drawn from its mask; now and then one of `endings` instead, so
    that free text ends. None: longer than `max_tokens`."""

    def texts(spec, count, *, endings=(), seed=0, max_tokens=2000):
        draw = random.Random(seed)
        closers = [spell(text) for text in endings]
        for _ in range(count):
            yield _walk(compiler, tokenizer, spec, draw, closers, max_tokens)

    return texts


def _walk(compiler, tokenizer, spec, draw, closers, max_tokens):
    matcher = compiler.matcher(spec)
    taken = []
    while len(taken) < max_tokens:
        if closers and draw.random() < 0.1:
            ending = draw.choice(closers)
            other = matcher.copy()
            if all(other.accept(token_id) for token_id in ending):
                matcher = other
                taken += ending
            continue
        token_id = draw.choice(allowed_ids(matcher.mask()))
        assert matcher.accept(token_id)
        if token_id in compiler.end_ids:
            return tokenizer.decode(taken, skip_special_tokens=False)
        taken.append(token_id)
    return None


def allowed_ids(mask):
    bits = int.from_bytes(mask, "little")
    return [token_id for token_id in range(bits.bit_length()) if bits >> token_id & 1]
