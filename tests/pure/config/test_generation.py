"""generation_config.json: read, or refused before anything is served."""

import json
from pathlib import Path

import pytest

from mimo_engine.config.generation import SamplingDefaults, read_sampling_defaults
from mimo_engine.errors import CheckpointError


def read(path: Path, content: object) -> SamplingDefaults:
    (path / "generation_config.json").write_text(json.dumps(content))
    return read_sampling_defaults(path)


def test_what_the_file_leaves_open_is_the_apis_default(tmp_path):
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()
    found = read(tmp_path, {"temperature": 0.6, "top_k": None, "do_sample": False})
    assert found == SamplingDefaults(temperature=0.6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not a JSON object"),
        ({"temperature": "hot"}, "temperature .* not a number"),
        ({"temperature": True}, "temperature .* not a number"),
        ({"temperature": float("nan")}, "temperature must be in"),
        ({"temperature": -1}, "temperature must be in"),
        ({"top_k": 20.5}, "top_k .* not a number"),
        ({"top_p": 0}, "top_p must be in"),
    ],
)
def test_what_no_request_may_have_is_refused_with_the_file(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=f"generation_config.json.*{message}|{message}"):
        read(tmp_path, content)
