"""KV-cache events: what a replica publishes about its blocks, in vLLM's wire format.

A ZMQ PUB message is three frames: topic, sequence number (8 bytes, big-endian, from 0, +1 a
batch), payload. The payload is a msgpack array `[ts, events, data_parallel_rank]`; each event is a
map with a `type` key (vLLM 0.24 and later) or a positional array whose first item is the type
(vLLM to 0.23, SGLang before its change to maps). We write maps and read both, batches as maps too.
Unknown fields are ignored; unknown event types become `UnknownEvent`, for the reader to count.

Slower tiers are told by hash alone: vLLM's offloading connector says of blocks it has copied to CPU
or storage only their hashes (`token_ids` empty, no parent, `block_size` 0). So a `BlockStored`
without token ids means: these blocks, known by their hashes, are now also on this medium. Where it
offloads several blocks as one, that is the last one's hash. (vLLM 43468 lets it tell all.)

A replay request to the ROUTER socket is `[b"", start_seq]`; the answer is one message a batch,
`[b"", topic, seq, payload]` (three frames after the empty one: vLLM 0.26 and later) or
`[b"", seq, payload]` (before), then an end marker whose sequence number is eight 0xFF bytes.

The snapshot is ours: `GET /kv_cache/snapshot` answers a msgpack `Snapshot`, everything the
replica holds after batch `seq`, parents before children.

Source: vllm/distributed/kv_events.py; sglang/srt/disaggregation/kv_events.py;
vllm/distributed/kv_transfer/kv_connector/v1/offloading (take_events).
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any

import msgspec

END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)

# An engine's name for a block. Opaque: never compared between replicas.
BlockHash = int | bytes
TokenId = Annotated[int, msgspec.Meta(ge=0)]

# None, but not left out: vLLM's own have no default, and vllm-router asks for them.
_WRITTEN: Any = msgspec.field(default_factory=type(None))


class BlockStored(
    msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True, gc=False
):
    """Full blocks that hang one after the other below `parent_block_hash`.

    `token_ids` holds the tokens of all of them: len(block_hashes) · block_size. Empty: blocks known
    by their hashes are now also on `medium`.
    `extra_keys` has one entry a block: what beside the tokens tells it from others (LoRA name,
    cache salt, multimodal ids), or None. `cache_salt` is SGLang's way to say the same of a salt.
    `locality` is LOCAL, REMOTE (in a store that other replicas share) or None: as seen from the
    replica that says it.
    """

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[TokenId]
    block_size: int
    lora_id: int | None = _WRITTEN
    medium: str | None = _WRITTEN
    lora_name: str | None = _WRITTEN
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    locality: str | None = None
    cache_salt: str | None = None


class BlockRemoved(
    msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True, gc=False
):
    block_hashes: list[BlockHash]
    medium: str | None = _WRITTEN
    group_idx: int | None = None
    locality: str | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, kw_only=True, tag=True, gc=False):
    pass


class UnknownEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a type we do not know: to be counted and skipped."""

    type: str


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared | UnknownEvent


class EventBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The events of one engine step. `ts` is seconds since the epoch on the replica's clock."""

    ts: float
    events: list[KvEvent]
    data_parallel_rank: int | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All a replica holds after event batch `seq` (-1: before the first), parents first.

    `epoch` names one life of the engine: it changes when the engine restarts and its sequence
    numbers begin again.
    """

    epoch: str
    seq: int
    block_size: int
    total_blocks: int
    events: list[BlockStored]


class Malformation(StrEnum):
    """What can be wrong with a message: a bounded set, to count and to log once each by."""

    FRAMES = "frames"
    SEQUENCE_NUMBER = "sequence_number"
    NOT_MSGPACK = "not_msgpack"
    BATCH = "batch"
    EVENT = "event"
    BLOCKS = "blocks"
    SNAPSHOT = "snapshot"
    RANK = "rank"


class MalformedEvents(ValueError):
    """What came is no event batch, replay or snapshot in any dialect we read."""

    def __init__(self, kind: Malformation, message: str) -> None:
        super().__init__(message)
        self.kind = kind


_encoder = msgspec.msgpack.Encoder()


def encode_batch(batch: EventBatch) -> bytes:
    """The payload frame of `batch`, events as maps."""
    return _encoder.encode([batch.ts, batch.events, batch.data_parallel_rank])


def encode_sequence_number(seq: int) -> bytes:
    return seq.to_bytes(8, "big")


def decode_sequence_number(frame: bytes) -> int:
    """Raises MalformedEvents when `frame` is not eight bytes, or those that no batch has."""
    if len(frame) != 8 or frame == END_OF_REPLAY:
        message = f"a sequence number is 8 bytes, not {bytes(frame[:9])!r}"
        raise MalformedEvents(Malformation.SEQUENCE_NUMBER, message)
    return int.from_bytes(frame, "big")


def encode_snapshot(snapshot: Snapshot) -> bytes:
    return _encoder.encode(snapshot)


class _SnapshotHead(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    epoch: str
    seq: int
    block_size: int
    total_blocks: int
    events: list[msgspec.Raw]


_snapshot_head_decoder = msgspec.msgpack.Decoder(_SnapshotHead)
_stored_decoder = msgspec.msgpack.Decoder(BlockStored)


# In a snapshot: a hash of 9 bytes, and tokens.
_BLOCK_BYTES_MIN = 10


class SnapshotReader:
    """A snapshot's bytes, its events decoded as they are asked for.

    A snapshot of 25,000 blocks takes 20 ms to decode, and its tokens 15 MB: whoever has other work
    in the meantime reads it a bit at a time.
    """

    def __init__(self, payload: bytes) -> None:
        """Raises MalformedEvents when `payload` is not a snapshot."""
        try:
            head = _snapshot_head_decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedEvents(Malformation.SNAPSHOT, f"not a snapshot: {error}") from error
        if head.seq < -1:
            message = f"a snapshot cannot be taken at batch {head.seq}"
            raise MalformedEvents(Malformation.SNAPSHOT, message)
        if head.block_size < 1 or head.total_blocks < 0:
            message = f"a snapshot of {head.total_blocks} blocks of {head.block_size} tokens"
            raise MalformedEvents(Malformation.SNAPSHOT, message)
        self.epoch = head.epoch
        self.seq = head.seq
        self.block_size = head.block_size
        self.total_blocks = head.total_blocks
        # A bound on what it holds that does not trust its word: a block takes this much at least.
        self.blocks_max = min(head.total_blocks, len(payload) // _BLOCK_BYTES_MIN)
        self._events = head.events

    def events(self) -> Iterator[BlockStored]:
        """Raises MalformedEvents when one is none."""
        for raw in self._events:
            try:
                event = _stored_decoder.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                message = f"not a snapshot's event: {error}"
                raise MalformedEvents(Malformation.SNAPSHOT, message) from error
            check_stored(event)
            yield event


def decode_snapshot(payload: bytes) -> Snapshot:
    """Raises MalformedEvents when `payload` is not a snapshot."""
    reader = SnapshotReader(payload)
    return Snapshot(
        epoch=reader.epoch,
        seq=reader.seq,
        block_size=reader.block_size,
        total_blocks=reader.total_blocks,
        events=list(reader.events()),
    )


def check_stored(event: BlockStored) -> None:
    """Raises MalformedEvents when blocks, tokens and extra keys do not fit together."""
    blocks, tokens, size = len(event.block_hashes), len(event.token_ids), event.block_size
    if (tokens and (size < 1 or tokens != blocks * size)) or size < 0:
        message = f"BlockStored: {blocks} blocks of {size} tokens, but {tokens} token ids"
        raise MalformedEvents(Malformation.BLOCKS, message)
    if event.extra_keys is not None and len(event.extra_keys) != blocks:
        message = "BlockStored: extra_keys needs one entry a block"
        raise MalformedEvents(Malformation.BLOCKS, message)


def split_stored(event: BlockStored, blocks_max: int) -> Iterator[BlockStored]:
    """The same as events of at most `blocks_max` blocks each, one below the other."""
    hashes, size = event.block_hashes, event.block_size
    if len(hashes) <= blocks_max:
        yield event
        return
    parent = event.parent_block_hash
    for start in range(0, len(hashes), blocks_max):
        end = min(start + blocks_max, len(hashes))
        yield msgspec.structs.replace(
            event,
            block_hashes=hashes[start:end],
            parent_block_hash=parent,
            token_ids=event.token_ids[start * size : end * size],
            extra_keys=None if event.extra_keys is None else event.extra_keys[start:end],
        )
        if event.token_ids:
            parent = hashes[end - 1]


def split_removed(event: BlockRemoved, blocks_max: int) -> Iterator[BlockRemoved]:
    """The same as events of at most `blocks_max` blocks each."""
    hashes = event.block_hashes
    if len(hashes) <= blocks_max:
        yield event
        return
    for start in range(0, len(hashes), blocks_max):
        yield msgspec.structs.replace(event, block_hashes=hashes[start : start + blocks_max])


_NAMING_BLOCKS = (BlockStored, BlockRemoved)


def portions(events: Iterable[KvEvent], blocks_max: int) -> Iterator[list[KvEvent]]:
    """The same events in order, in lists of about `blocks_max` blocks, long ones in pieces."""
    portion: list[KvEvent] = []
    blocks = 0
    for event in events:
        pieces: Iterable[KvEvent] = (event,)
        if isinstance(event, BlockStored):
            pieces = split_stored(event, blocks_max)
        elif isinstance(event, BlockRemoved):
            pieces = split_removed(event, blocks_max)
        for piece in pieces:
            portion.append(piece)
            blocks += len(piece.block_hashes) if isinstance(piece, _NAMING_BLOCKS) else 1
            if blocks >= blocks_max:
                yield portion
                portion, blocks = [], 0
    if portion:
        yield portion


class ReplayMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One batch of a replay answer, as bytes still encoded."""

    seq: int
    payload: bytes


def decode_replay_message(frames: Sequence[bytes]) -> ReplayMessage | None:
    """The batch in a replay answer's frames (topic frame or not); None at the end marker.

    Raises:
        MalformedEvents: the frames are not a replay message.
    """
    body = frames[1:] if frames and frames[0] == b"" else frames
    if END_OF_REPLAY in body[:2]:
        return None
    if len(body) not in (2, 3):
        raise MalformedEvents(
            Malformation.FRAMES, f"a replay message has 2 or 3 frames, not {len(body)}"
        )
    seq, payload = body[-2:]
    return ReplayMessage(seq=decode_sequence_number(seq), payload=payload)
