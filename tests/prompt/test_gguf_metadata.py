"""GGUF metadata: what the gguf package writes, and files that are none or end too soon."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from prompt.errors import ModelFileError
from prompt.gguf_metadata import read_metadata
from prompt.model_files import GgufFile

VALUES: dict[str, tuple[Any, gguf.GGUFValueType]] = {
    "uint8": (255, gguf.GGUFValueType.UINT8),
    "int8": (-128, gguf.GGUFValueType.INT8),
    "uint16": (65535, gguf.GGUFValueType.UINT16),
    "int16": (-32768, gguf.GGUFValueType.INT16),
    "uint32": (2**32 - 1, gguf.GGUFValueType.UINT32),
    "int32": (-(2**31), gguf.GGUFValueType.INT32),
    "uint64": (2**64 - 1, gguf.GGUFValueType.UINT64),
    "int64": (-(2**63), gguf.GGUFValueType.INT64),
    "float32": (0.5, gguf.GGUFValueType.FLOAT32),
    "float64": (0.1, gguf.GGUFValueType.FLOAT64),
    "bool": (True, gguf.GGUFValueType.BOOL),
    "string": ("naïve 猫", gguf.GGUFValueType.STRING),
    "empty": ("", gguf.GGUFValueType.STRING),
}
ARRAYS: dict[str, list[Any]] = {
    "tokens": ["a", "Ġthe", "", "猫"],
    "scores": [0.5, -1.0],
    "types": [1, 3, -4],
    "flags": [True, False],
}


def write(path: Path, endian: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE) -> Path:
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    for name, (value, kind) in VALUES.items():
        writer.add_key_value(f"one.{name}", value, kind)
    for name, values in ARRAYS.items():
        writer.add_array(f"many.{name}", values)
    writer.add_tensor("weight", np.ones((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("endian", list(gguf.GGUFEndian), ids=lambda one: one.name)
def test_every_type_is_read_as_it_was_written(tmp_path: Path, endian: gguf.GGUFEndian) -> None:
    found = read_metadata(write(tmp_path / "m.gguf", endian))
    assert found.pop("general.architecture") == "llama"
    expected = {f"one.{name}": value for name, (value, _) in VALUES.items()}
    expected |= {f"many.{name}": values for name, values in ARRAYS.items()}
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in expected.items()
    }


def test_a_file_that_ends_in_its_metadata_is_told_wherever_it_ends(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf").read_bytes()
    end = whole.index(b"weight") - 8
    cut = tmp_path / "cut.gguf"
    for length in range(0, end, 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"GGUF|ends at|empty"):
            read_metadata(cut)
    with pytest.raises(ModelFileError, match=r"cut\.gguf: not a GGUF file, or cut off"):
        GgufFile(cut)


def test_a_file_that_ends_in_its_tensors_is_told_when_they_are_asked_for(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-20])
    file = GgufFile(tmp_path / "cut.gguf")
    assert file.metadata["one.string"] == "naïve 猫"
    with pytest.raises(ModelFileError, match=r"cut\.gguf: not a GGUF file, or cut off"):
        _ = file.shapes


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"GGML", "does not begin with GGUF"),
        (4, b"\x01\0\0\0", "version 1 is none of"),
        (4, b"\0\0\0\x09", "version 9 is none of"),
        (16, b"\xff" * 8, "ends at byte"),
        (24, b"\xff" * 8, "ends at byte"),
    ],
    ids=["magic", "version", "other order", "pairs", "key's length"],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, at: int, value: bytes, message: str
) -> None:
    whole = bytearray(write(tmp_path / "m.gguf").read_bytes())
    whole[at : at + len(value)] = value
    (tmp_path / "bad.gguf").write_bytes(whole)
    with pytest.raises(ValueError, match=message):
        read_metadata(tmp_path / "bad.gguf")


def test_a_type_that_is_none_is_named(tmp_path: Path) -> None:
    whole = bytearray(write(tmp_path / "m.gguf").read_bytes())
    kind = whole.index(b"one.uint8") + len(b"one.uint8")
    whole[kind] = 13
    (tmp_path / "bad.gguf").write_bytes(whole)
    with pytest.raises(ValueError, match="no value has type 13"):
        read_metadata(tmp_path / "bad.gguf")
