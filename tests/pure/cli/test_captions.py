"""Files of captions: what is read, and that every fault is named by its row."""

import json
import re

import pytest

from media_config import processor_config
from media_files import gradient, make_image
from mimo_engine.cli.captions import read_captions
from mimo_engine.errors import ConfigError

CONFIG = processor_config()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(make_image(gradient(40, 30)))
    (tmp_path / "b.jpg").write_bytes(make_image(gradient(30, 40), "JPEG"))
    return tmp_path


def write(folder, *lines):
    path = folder / "captions.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def entry(image, caption="A gradient.", **more):
    return json.dumps({"image": str(image), "caption": caption, **more}, ensure_ascii=False)


def test_lines_are_pictures_beside_the_file_or_anywhere_with_their_captions(folder):
    path = write(folder, entry("a.png", " Ein Übergang.\u2028"), entry(folder / "b.jpg"))
    captions = read_captions(path, CONFIG)
    assert [one.image for one in captions] == [folder / "a.png", folder / "b.jpg"]
    assert [one.text for one in captions] == ["Ein Übergang.", "A gradient."]
    assert [one.where for one in captions] == [f"{path}, row 1", f"{path}, row 2"]


def test_a_last_line_without_its_end_counts_too(folder):
    path = folder / "captions.jsonl"
    path.write_text(entry("a.png"))
    assert len(read_captions(path, CONFIG)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param("{", "is not JSON", id="no JSON"),
        pytest.param("", "is not JSON", id="empty line"),
        pytest.param("[" * 100_000, "is not JSON", id="too deep"),
        pytest.param('["b.jpg", "text"]', "must be a JSON object, not list", id="list"),
        pytest.param(entry("b.jpg", weight=2), "weight: only", id="unknown key"),
        pytest.param('{"image": "b.jpg"}', "caption must be a string", id="no caption"),
        pytest.param('{"caption": "text"}', "image must be a string", id="no image"),
        pytest.param('{"image": 3, "caption": "text"}', "image must be", id="image is a number"),
        pytest.param(entry("b.jpg", "  "), "caption must be a string that is", id="blank caption"),
        pytest.param(entry("no.png"), "no.png is not a file", id="missing image"),
        pytest.param(entry("."), "is not a file", id="directory"),
        pytest.param(entry("a\0.png"), "is not a file", id="no path"),
        pytest.param(entry("./a.png"), "the picture of .*row 1 again", id="same image"),
        pytest.param(entry("captions.jsonl"), "not a BMP", id="no image file"),
        pytest.param(entry("thin.png"), "thin.png: .*200", id="too long and thin"),
    ],
)
def test_a_fault_names_its_row(folder, line, message):
    (folder / "thin.png").write_bytes(make_image(gradient(6500, 32)))
    path = write(folder, entry("a.png"), line)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}, row 2.*{message}"):
        read_captions(path, CONFIG)


def test_a_damaged_picture_names_its_row(folder):
    whole = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"row 1: .*b\.jpg: the image cannot be decoded"):
        read_captions(write(folder, entry("b.jpg"), entry("a.png")), CONFIG)


def test_files_without_captions_are_refused(folder):
    with pytest.raises(ConfigError, match="is empty: give a line"):
        read_captions(write(folder), CONFIG)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_captions(folder / "nothing", CONFIG)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_captions(folder, CONFIG)
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_captions(folder / "b.jpg", CONFIG)
