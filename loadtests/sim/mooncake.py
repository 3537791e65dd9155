"""Mooncake's request traces (JSON lines) as simulated requests, their prompts made one at a time.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, …, 2354]}

Timestamps are milliseconds, lengths tokens. An id stands for 512 tokens and all that come before
them: equal ids, equal prefixes. Source: Qin et al. 2024, arXiv:2407.00079, section 4, and
github.com/kvcache-ai/Mooncake.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from loadtests.sim.request import SimRequest

BLOCK_TOKENS = 512
_IDS_MAX = 2**32 // BLOCK_TOKENS
_OFFSETS = np.arange(BLOCK_TOKENS, dtype=np.uint32)


class TraceError(ValueError):
    """A line of a trace is not what it should be: names the file, the line and the field."""


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=0)]
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, lt=_IDS_MAX)]]


class _Entry(NamedTuple):
    """A line that was found right; its ids as an array take a tenth of a list's memory."""

    timestamp_ms: float
    input_tokens: int
    output_tokens: int
    ids: "array[int]"


def read(path: Path, *, limit: int | None = None, speedup: float = 1.0) -> Iterator[SimRequest]:
    """The requests of a trace in the order they arrive; lines of the same time keep their order.

    All lines are read and judged at the call; a prompt is made when its request is asked for, so
    that a trace of 10⁸ tokens takes no more memory than its ids.

    Args:
        path: The trace. Fields beside the four are ignored, as are ids beyond `input_length`.
        limit: At most so many requests, the earliest ones; None: all.
        speedup: Arrival times are divided by it: 2.0 is twice the load.

    Returns:
        Requests whose prompts hold tokens id · 512 + i, i from 0 to 511 for each id, cut to
        `input_length`. An answer of 0 tokens becomes one of 1.

    Raises:
        TraceError: A line is not JSON, lacks a field, has one out of its range (ids end below
            2²³, so that tokens end below 2³²), or too few ids for its length.
        OSError: The file cannot be read.
        ValueError: `limit` is negative, or `speedup` not above 0.
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit: expected at least 0, got {limit}")
    if not speedup > 0:
        raise ValueError(f"speedup: expected more than 0, got {speedup}")
    entries = _lines(path)
    entries.sort(key=lambda entry: entry.timestamp_ms)
    return _requests(entries[:limit], speedup)


def _lines(path: Path) -> list[_Entry]:
    decoder = msgspec.json.Decoder(_Line)
    with path.open("rb") as file:
        return [_entry(decoder, text, f"{path}:{n}") for n, text in enumerate(file, start=1)]


def _entry(decoder: "msgspec.json.Decoder[_Line]", text: bytes, place: str) -> _Entry:
    try:
        line = decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TraceError(f"{place}: {error}") from error
    needed = -(-line.input_length // BLOCK_TOKENS)
    if len(line.hash_ids) < needed:
        raise TraceError(
            f"{place}: Expected {needed} ids for {line.input_length} tokens, "
            f"got {len(line.hash_ids)} - at `$.hash_ids`"
        )
    ids = array("I", line.hash_ids[:needed])
    return _Entry(line.timestamp, line.input_length, max(line.output_length, 1), ids)


def _requests(entries: list[_Entry], speedup: float) -> Iterator[SimRequest]:
    for number, entry in enumerate(entries):
        yield SimRequest(
            number=number,
            arrival_s=entry.timestamp_ms / 1000 / speedup,
            prompt=_prompt(entry.ids, entry.input_tokens),
            output_tokens=entry.output_tokens,
        )


def _prompt(ids: "array[int]", tokens: int) -> "array[int]":
    """[tokens], made of whole rows id · 512 + (0 … 511)."""
    rows = np.add.outer(np.frombuffer(ids, np.uint32) * np.uint32(BLOCK_TOKENS), _OFFSETS)
    return array("I", rows.reshape(-1)[:tokens].tobytes())
