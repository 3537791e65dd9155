"""A GGUF file's metadata and tensors, read through a memory map.

The gguf package's own reader makes a numpy array of every string of the vocabulary, which takes
seconds; its dequantisation is used as it is.

Source: ggml `docs/gguf.md`, versions 2 and 3.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from prompt.errors import ModelFileError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """Where a tensor lies. `shape` is in C order, as in PyTorch: the file has it reversed."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    byte_count: int


class GgufFile:
    """An open GGUF file."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ModelFileError: it is no GGUF file, cut off, or of a version or byte order we do not
                read.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: {error}") from error
        try:
            self._read_head()
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path}: cut off or damaged: {error}") from error

    def _read_head(self) -> None:
        if self._map[:4] != _MAGIC:
            raise ModelFileError(f"{self.path}: not a GGUF file")
        cursor = _Cursor(self._map, 4)
        version = cursor.scalar(_U32)
        if version not in _VERSIONS:
            raise ModelFileError(f"{self.path}: GGUF version {version} (2 and 3 are read)")
        tensor_count, pair_count = cursor.scalar(_U64), cursor.scalar(_U64)
        self.metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.scalar(_U32))
        raw = []
        for _ in range(tensor_count):
            name = cursor.string()
            reversed_shape = [cursor.scalar(_U64) for _ in range(cursor.scalar(_U32))]
            raw.append((name, reversed_shape[::-1], cursor.scalar(_U32), cursor.scalar(_U64)))
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        start = -(-cursor.position // alignment) * alignment
        self.tensors = {
            name: self._tensor(name, tuple(shape), kind, start + offset)
            for name, shape, kind, offset in raw
        }

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        try:
            known = gguf.GGMLQuantizationType(kind)
        except ValueError as error:
            raise ModelFileError(f"{self.path}: tensor {name}: unknown type {kind}") from error
        block, block_bytes = gguf.GGML_QUANT_SIZES[known]
        count = int(np.prod(shape))
        byte_count = count // block * block_bytes
        if shape[-1] % block or offset + byte_count > len(self._map):
            raise ModelFileError(f"{self.path}: tensor {name} {shape}: cut off or damaged")
        return GgufTensor(name=name, shape=shape, kind=known, offset=offset, byte_count=byte_count)

    def read(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The tensor as fp32, in its shape.

        Raises:
            ModelFileError: it is quantised in a way the gguf package does not decode.
        """
        tensor = self.tensors[name]
        raw = np.frombuffer(self._map, np.uint8, tensor.byte_count, tensor.offset)
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
        rows = raw.reshape(*tensor.shape[:-1], tensor.shape[-1] // block * block_bytes)
        match tensor.kind:
            case gguf.GGMLQuantizationType.F32:
                return rows.view(np.float32).copy()
            case gguf.GGMLQuantizationType.F16:
                return rows.view(np.float16).astype(np.float32)
        try:
            values: np.ndarray[Any, np.dtype[np.float32]] = gguf.quants.dequantize(
                rows, tensor.kind
            )
        except NotImplementedError as error:
            raise ModelFileError(
                f"{self.path}: tensor {name}: {tensor.kind.name} cannot be decoded"
            ) from error
        return values


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, data: mmap.mmap, position: int) -> None:
        self._data = data
        self.position = position

    def scalar(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self._data, self.position)
        self.position += form.size
        return value

    def string(self) -> str:
        length = self.scalar(_U64)
        end = self.position + length
        if end > len(self._data):
            raise IndexError(f"a string of {length} bytes at {self.position}")
        text = self._data[self.position : end].decode()
        self.position = end
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item_kind, count = self.scalar(_U32), self.scalar(_U64)
            if item_kind in _SCALARS:
                form = _SCALARS[item_kind]
                items = struct.unpack_from(f"<{count}{form.format[-1]}", self._data, self.position)
                self.position += count * form.size
                return list(items)
            return [self.value(item_kind) for _ in range(count)]
        if kind not in _SCALARS:
            raise IndexError(f"a value of unknown type {kind} at {self.position}")
        return self.scalar(_SCALARS[kind])
