"""Headers and index files, healthy and not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mimo_engine.checkpoint.index import INDEX_NAME, open_checkpoint
from mimo_engine.errors import CheckpointError


def write_index(model_dir: Path, weight_map: dict[str, Any], **metadata: Any) -> None:
    index = {"metadata": metadata, "weight_map": weight_map}
    (model_dir / INDEX_NAME).write_text(json.dumps(index))


def write_raw(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.uint8,
        torch.int64,
    ],
)
def test_tensors_are_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "a": torch.arange(12).view(3, 4).to(dtype),
        "b": torch.ones(()).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"tp_size": "4"})
    index = open_checkpoint(tmp_path)
    assert index.metadata == {"tp_size": "4"}
    for name, tensor in tensors.items():
        info, got = index.tensors[name], index.read(name)
        assert (info.shape, info.dtype, info.nbytes) == (tensor.shape, dtype, tensor.nbytes)
        assert got.dtype is dtype
        assert torch.equal(got.float(), tensor.float())


def test_tensors_at_odd_addresses_are_read_back(tmp_path: Path) -> None:
    floats = torch.tensor([1.5, -2.25])
    header = {
        "bytes": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "floats": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    write_raw(tmp_path / "x.safetensors", header, bytes([1, 2, 3]) + floats.numpy().tobytes())
    index = open_checkpoint(tmp_path)
    assert torch.equal(index.read("floats"), floats)
    assert index.read("bytes").tolist() == [1, 2, 3]


def test_tensors_are_listed_in_the_order_of_the_files(tmp_path: Path) -> None:
    save_file({"z": torch.ones(1), "y": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "2.safetensors")
    write_index(tmp_path, {"a": "2.safetensors", "y": "1.safetensors", "z": "1.safetensors"})
    tensors = list(open_checkpoint(tmp_path).tensors.values())
    assert [info.file for info in tensors] == ["1.safetensors"] * 2 + ["2.safetensors"]
    assert tensors[0].start < tensors[1].start


def test_the_metadata_of_the_index_comes_before_that_of_the_files(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors", metadata={"tp_size": "9"})
    write_index(tmp_path, {"a": "1.safetensors"}, tp_size=4, total_size=4)
    assert open_checkpoint(tmp_path).metadata == {"tp_size": 4, "total_size": 4}


def test_files_in_subdirectories_belong_to_other_models(tmp_path: Path) -> None:
    (tmp_path / "dflash").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "dflash" / "x.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "x.safetensors")
    assert set(open_checkpoint(tmp_path).tensors) == {"b"}


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for file in ("1.safetensors", "2.safetensors"):
        save_file({"model.norm.weight": torch.ones(1)}, tmp_path / file)
    with pytest.raises(
        CheckpointError,
        match=r"model\.norm\.weight is in 1\.safetensors and in 2\.safetensors: remove",
    ):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("num_bytes", [0, 5, 20, 200, 391])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, num_bytes: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(80)}, path)
    whole = path.read_bytes()
    assert len(whole) == 392
    path.write_bytes(whole[:num_bytes])
    with pytest.raises(CheckpointError, match=r"x\.safetensors has \d+ bytes.*download it again"):
        open_checkpoint(tmp_path)


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(80)}, path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F6", "shape": [1], "data_offsets": [0, 4]}, "unreadable header entry"),
        ({"dtype": "F32", "shape": [1]}, "unreadable header entry"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, r"4 bytes do not hold \[2\]"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}, "do not hold"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    write_raw(tmp_path / "x.safetensors", {"model.norm.weight": entry}, bytes(4))
    with pytest.raises(CheckpointError, match=rf"model\.norm\.weight of x\.safetensors.*{message}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("offset", [0, 8])
def test_tensors_that_overlap_or_leave_a_gap_are_refused(tmp_path: Path, offset: int) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [offset, offset + 4]},
    }
    write_raw(tmp_path / "x.safetensors", header, bytes(offset + 4))
    with pytest.raises(CheckpointError, match=r"tensor b of x\.safetensors begins at byte"):
        open_checkpoint(tmp_path)


def test_a_header_that_lists_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    entry = '"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
    text = f"{{{entry}, {entry}}}".encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(1))
    with pytest.raises(CheckpointError, match="a is listed twice"):
        open_checkpoint(tmp_path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes((4).to_bytes(8, "little") + b"\x80abc")
    with pytest.raises(CheckpointError, match="no valid safetensors header"):
        open_checkpoint(tmp_path)


def test_an_index_that_names_a_missing_file_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, {"a": "gone.safetensors"})
    with pytest.raises(CheckpointError, match=r"names gone\.safetensors, which is missing"):
        open_checkpoint(tmp_path)


def test_an_index_that_names_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    write_index(tmp_path, {"a": "1.safetensors", "b": "1.safetensors"})
    with pytest.raises(CheckpointError, match=r"tensor b in 1\.safetensors, but no file has it"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "1.safetensors")
    write_index(tmp_path, {"a": "1.safetensors"})
    with pytest.raises(CheckpointError, match=r"1\.safetensors has tensor b, which.*not list"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_another_file_than_the_index_says_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "2.safetensors")
    write_index(tmp_path, {"a": "2.safetensors", "b": "1.safetensors"})
    with pytest.raises(CheckpointError, match=r"tensor a in 2\.safetensors, but it is in 1"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["../other/x.safetensors", "/etc/passwd", "sub/x.safetensors", 3])
def test_an_index_cannot_lead_out_of_its_directory(tmp_path: Path, file: Any) -> None:
    write_index(tmp_path, {"a": file})
    with pytest.raises(CheckpointError, match="not a file beside it"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        open_checkpoint(tmp_path)


def test_an_index_that_lists_a_tensor_twice_is_refused(tmp_path: Path) -> None:
    text = '{"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}}'
    (tmp_path / INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match="a is listed twice"):
        open_checkpoint(tmp_path)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*never read: convert"):
        open_checkpoint(tmp_path)
    write_index(tmp_path, {"a": "pytorch_model.bin"})
    with pytest.raises(CheckpointError, match=r"only \.safetensors files are read"):
        open_checkpoint(tmp_path)


def test_an_empty_or_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="not a directory"):
        open_checkpoint(tmp_path / "nothing")
