"""SGLang's placement snapshots: the hashes of all a worker holds, and where its events go on.

A DEALER sends `[b"", b"snapshot-v1"]` to the worker's snapshot socket and gets messages of three
frames, the first one empty:

    header   msgpack array [version, epoch, replica_rank, resume_seq, barrier_seq, barrier_id,
             record_count]
    chunk    msgpack array of records [parent_block_hash, [block_hash, ...]], 4096 at most,
             parents not always before children
    end      nothing
    error    a reason, as text; instead of all of the above or in between

It holds no token ids: which text a hash stands for is known only from events. `resume_seq` is the
number of the first batch that it does not cover; the one before, `barrier_seq`, is an empty batch
that was published when it was taken.

A worker that has a snapshot socket names its life in the topic of every live message, after the
configured topic: `\\0sgl-kv-epoch=EPOCH`, and for the barrier's also `\\0sgl-kv-snapshot=ID`.

Source: sglang/srt/disaggregation/kv_events.py, ZmqEventPublisher (SGLang pull request 34407).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from protocol.kv_events import BlockHash, Malformation, MalformedEvents

SNAPSHOT_REQUEST = b"snapshot-v1"

_VERSION = 1
_EPOCH_MARKER = b"\x00sgl-kv-epoch="
_BARRIER_MARKER = b"\x00sgl-kv-snapshot="


class SnapshotRefused(Exception):
    """The worker cannot give a snapshot now; the message is its reason."""


class _Header(msgspec.Struct, frozen=True, array_like=True, gc=False):
    version: int
    epoch: str
    replica_rank: int
    resume_seq: int
    barrier_seq: int
    barrier_id: str
    record_count: int


class _Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    parent_block_hash: Any
    block_hashes: list[BlockHash]


_header_decoder = msgspec.msgpack.Decoder(_Header)
_chunk_decoder = msgspec.msgpack.Decoder(list[_Record])


def epoch_of_topic(topic: bytes) -> str | None:
    """The life of the engine that a live message's topic names, if it names one."""
    _, marker, rest = topic.partition(_EPOCH_MARKER)
    if not marker:
        return None
    return rest.partition(_BARRIER_MARKER)[0].decode(errors="replace")


class PlacementReader:
    """Puts a snapshot together from its messages.

    Attributes, once `take` has said that it is whole:
        epoch: Names one life of the engine.
        rank: The data-parallel rank whose cache this is.
        resume_seq: The first event batch it does not cover.
        hashes: Of all blocks held, in whatever medium.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.rank = 0
        self.resume_seq = 0
        self.hashes: set[BlockHash] = set()
        self._records_left: int | None = None

    def take(self, frames: Sequence[bytes]) -> bool:
        """Takes one message; whether it was the last.

        Raises:
            SnapshotRefused: the worker says no.
            MalformedEvents: the message is no part of a snapshot, or not the one to come next.
        """
        body = frames[1:] if frames and frames[0] == b"" else frames
        if len(body) != 2:
            message = f"a snapshot message has 2 frames after the empty one, not {len(body)}"
            raise MalformedEvents(Malformation.FRAMES, message)
        kind, payload = body
        if kind == b"error":
            raise SnapshotRefused(bytes(payload).decode(errors="replace"))
        try:
            if kind == b"header" and self._records_left is None:
                self._take_header(_header_decoder.decode(payload))
                return False
            if kind == b"chunk" and self._records_left is not None:
                self._take_chunk(_chunk_decoder.decode(payload))
                return False
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"snapshot {bytes(kind).decode()}: {error}"
            raise MalformedEvents(Malformation.SNAPSHOT, message) from error
        if kind != b"end" or self._records_left is None:
            message = f"a snapshot message {bytes(kind)[:20]!r} out of turn"
            raise MalformedEvents(Malformation.SNAPSHOT, message)
        if self._records_left:
            message = f"a snapshot that ends {self._records_left} records early"
            raise MalformedEvents(Malformation.SNAPSHOT, message)
        return True

    def _take_header(self, header: _Header) -> None:
        if header.version != _VERSION:
            message = f"a snapshot of version {header.version}; we read version {_VERSION}"
            raise MalformedEvents(Malformation.SNAPSHOT, message)
        if not 0 <= header.resume_seq < 2**64 - 1 or header.record_count < 0:
            message = "a snapshot's resume_seq or record_count is out of range"
            raise MalformedEvents(Malformation.SNAPSHOT, message)
        self.epoch, self.rank = header.epoch, header.replica_rank
        self.resume_seq, self._records_left = header.resume_seq, header.record_count

    def _take_chunk(self, records: list[_Record]) -> None:
        assert self._records_left is not None
        if not records:
            raise MalformedEvents(Malformation.SNAPSHOT, "a chunk of a snapshot without records")
        self._records_left -= len(records)
        if self._records_left < 0:
            message = "a snapshot with more records than its header says"
            raise MalformedEvents(Malformation.SNAPSHOT, message)
        for record in records:
            self.hashes.update(record.block_hashes)
