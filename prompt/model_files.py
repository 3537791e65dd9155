"""A model's files, opened: GGUF (through the gguf package) and a Hugging Face directory's JSON.

Every way in which they can be missing or broken is a `ModelFileError` that names the file.
"""

import struct
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from prompt.errors import ModelFileError
from prompt.gguf_metadata import read_metadata

if TYPE_CHECKING:
    import numpy as np
    from gguf import ReaderTensor


class GgufFile:
    """An open GGUF file: its metadata, and its tensors dequantised when read."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ModelFileError: it is no GGUF file, cut off, or of a version the package does not read.
        """
        self.path = path
        try:
            self.metadata: dict[str, Any] = read_metadata(path)
        except OSError as error:
            raise ModelFileError(f"{path}: {error.strerror or error}") from error
        except ValueError as error:
            raise ModelFileError(f"{path}: not a GGUF file, or cut off: {error}") from error

    @cached_property
    def _tensors(self) -> "dict[str, ReaderTensor]":
        """Found when they are first asked for: it takes seconds. Raises ModelFileError."""
        from gguf import GGUFReader

        try:
            return {one.name: one for one in GGUFReader(self.path).tensors}
        except OSError as error:
            raise ModelFileError(f"{self.path}: {error.strerror or error}") from error
        except (ValueError, IndexError, KeyError, struct.error) as error:
            raise ModelFileError(f"{self.path}: not a GGUF file, or cut off: {error}") from error

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape in C order, as in PyTorch: the file has it reversed."""
        return {name: _shape(tensor) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """The tensor as fp32, in its shape.

        Raises:
            ModelFileError: it is quantised in a way the package does not decode.
        """
        tensor = self._tensors[name]
        return self._decode(tensor, tensor.data).reshape(_shape(tensor))

    def read_part(self, name: str, index: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """`read(name)[index]`, for which nothing else of the tensor is read or decoded.

        Args:
            name: A tensor of at least two dimensions: rows are quantised each by itself.

        Raises:
            ModelFileError: it is quantised in a way the package does not decode.
        """
        tensor = self._tensors[name]
        return self._decode(tensor, tensor.data[index]).reshape(_shape(tensor)[1:])

    def _decode(
        self, tensor: "ReaderTensor", data: "np.ndarray[Any, Any]"
    ) -> "np.ndarray[Any, np.dtype[np.float32]]":
        import numpy as np
        from gguf.quants import dequantize

        try:
            values = dequantize(data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ModelFileError(
                f"{self.path}: tensor {tensor.name}: {kind} cannot be decoded"
            ) from error
        # Unquantised tensors come as a read-only view of the file.
        return np.array(values, dtype=np.float32)


def _shape(tensor: "ReaderTensor") -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def open_model_files(path: Path) -> "Path | GgufFile":
    """`path` if it is a directory, else the GGUF file, opened.

    Raises:
        ModelFileError: it is no GGUF file.
    """
    return path if path.is_dir() else GgufFile(path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelFileError: it is missing, cannot be read, or is no JSON object.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from error
    except msgspec.DecodeError as error:
        raise ModelFileError(f"{path}: {error}") from error
