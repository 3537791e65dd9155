"""One data set on disk: event streams, questions with their right answers, vocabulary, tokenizer.

It is written once and read by every contestant, each in a process of its own; so that reading
needs nothing but msgspec.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

_HEAD = struct.Struct(">II")

LOAD, DECODE, EVICT = "load", "decode", "evict"
PHASES = (LOAD, DECODE, EVICT)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, and how many tokens of it each replica holds at the end."""

    length: int
    tokens: list[int]
    text: bytes
    holders: dict[int, int]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a data set holds.

    Attributes:
        lengths: Classes of prompts, in tokens.
        resident_blocks: (Replica, block) pairs after `load`.
        distinct_blocks: Blocks after `load`, however many replicas hold each.
        text_bytes: Of the distinct blocks, about: by the questions' mean.
        blocks: Blocks in the events of each phase.
    """

    replicas: int
    lengths: list[int]
    resident_blocks: int
    distinct_blocks: int
    text_bytes: int
    blocks: dict[str, int]


def write_frames(path: Path, frames: Iterable[tuple[int, bytes]]) -> None:
    """Event batches and whose they are."""
    with path.open("wb") as file:
        for replica, payload in frames:
            file.write(_HEAD.pack(replica, len(payload)))
            file.write(payload)


def read_frames(path: Path) -> Iterator[tuple[int, bytes]]:
    """What `write_frames` wrote, one at a time: the file is never in memory as a whole."""
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            replica, size = _HEAD.unpack(head)
            yield replica, file.read(size)


class DataSet:
    """The files of a data set in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def frames_path(self, phase: str) -> Path:
        return self.directory / f"{phase}.frames"

    @property
    def tokenizer_path(self) -> Path:
        return self.directory / "tokenizer.json"

    def write(self, facts: Facts, asked: list[Asked], token_bytes: list[bytes]) -> None:
        for name, value in (("facts", facts), ("asked", asked), ("vocabulary", token_bytes)):
            (self.directory / f"{name}.msgpack").write_bytes(msgspec.msgpack.encode(value))

    def facts(self) -> Facts:
        return msgspec.msgpack.decode(self._read("facts"), type=Facts)

    def asked(self) -> list[Asked]:
        return msgspec.msgpack.decode(self._read("asked"), type=list[Asked])

    def token_bytes(self) -> list[bytes]:
        return msgspec.msgpack.decode(self._read("vocabulary"), type=list[bytes])

    def _read(self, name: str) -> bytes:
        return (self.directory / f"{name}.msgpack").read_bytes()
