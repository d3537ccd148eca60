"""A tokenizer of the family's kind, read from files as any checkpoint's is; and makes the helpers
of this directory importable."""

import sys
from pathlib import Path

import pytest

from mimo_engine.chat.template import family_template
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.checkpoint.synthetic_tokenizer import write_synthetic_tokenizer

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_synthetic_tokenizer(path, chat_template=family_template(), vocab_size=512)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir):
    return Tokenizer.from_dir(tokenizer_dir)
