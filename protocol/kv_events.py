"""KV-cache events: what a replica publishes about its blocks, in vLLM's wire format.

A ZMQ PUB message is three frames: topic, sequence number (8 bytes, big-endian, from 0, +1 a
batch), payload. The payload is a msgpack array `[ts, events, data_parallel_rank]`; each event is a
map with a `type` key (vLLM 0.24 and later) or a positional array whose first item is the type
(vLLM to 0.23, SGLang before its change to maps). We write maps and read both, batches as maps too.
Unknown fields are ignored; unknown event types become `UnknownEvent`, for the reader to count.

A replay request to the ROUTER socket is `[b"", start_seq]`; the answer is one message a batch,
`[b"", topic, seq, payload]` (three frames after the empty one: vLLM 0.26 and later) or
`[b"", seq, payload]` (before), then an end marker whose sequence number is eight 0xFF bytes.

The snapshot is ours: `GET /kv_cache/snapshot` answers a msgpack `Snapshot`, everything the
replica holds after batch `seq`, parents before children.

Source: vllm/distributed/kv_events.py; sglang/srt/disaggregation/kv_events.py.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)

# An engine's name for a block. Opaque: never compared between replicas.
BlockHash = int | bytes


class BlockStored(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    """Full blocks that hang one after the other below `parent_block_hash`.

    `token_ids` holds the tokens of all of them: len(block_hashes) · block_size.
    `extra_keys` has one entry a block: what beside the tokens tells it from others (LoRA name,
    cache salt, multimodal ids), or None. `cache_salt` is SGLang's way to say the same of a salt.
    """

    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[Annotated[int, msgspec.Meta(ge=0)]]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    cache_salt: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, frozen=True, kw_only=True, tag=True):
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


class MalformedEvents(ValueError):
    """A payload that is not an event batch in any dialect we read."""


_encoder = msgspec.msgpack.Encoder()
_snapshot_decoder = msgspec.msgpack.Decoder(Snapshot)


def encode_batch(batch: EventBatch) -> bytes:
    """The payload frame of `batch`, events as maps."""
    return _encoder.encode([batch.ts, batch.events, batch.data_parallel_rank])


def encode_sequence_number(seq: int) -> bytes:
    return seq.to_bytes(8, "big")


def decode_sequence_number(frame: bytes) -> int:
    """Raises MalformedEvents when `frame` is not eight bytes."""
    if len(frame) != 8:
        raise MalformedEvents(f"a sequence number has 8 bytes, not {len(frame)}")
    return int.from_bytes(frame, "big")


def encode_snapshot(snapshot: Snapshot) -> bytes:
    return _encoder.encode(snapshot)


def decode_snapshot(payload: bytes) -> Snapshot:
    """Raises MalformedEvents when `payload` is not a snapshot."""
    try:
        snapshot = _snapshot_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedEvents(f"not a snapshot: {error}") from error
    if snapshot.seq < -1:
        raise MalformedEvents(f"a snapshot cannot be taken at batch {snapshot.seq}")
    for event in snapshot.events:
        _check_stored(event)
    return snapshot


def decode_batch(payload: bytes) -> EventBatch:
    """The batch in `payload`, whichever dialect it was written in.

    Raises:
        MalformedEvents: it is none.
    """
    try:
        raw = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedEvents(f"not msgpack: {error}") from error
    if isinstance(raw, dict):
        ts, events, rank = raw.get("ts"), raw.get("events"), raw.get("data_parallel_rank")
    elif isinstance(raw, list) and len(raw) >= 2:
        ts, events, rank = raw[0], raw[1], raw[2] if len(raw) > 2 else None
    else:
        raise MalformedEvents("a batch is a map or an array of at least two items")
    if isinstance(ts, bool) or not isinstance(ts, int | float) or not isinstance(events, list):
        raise MalformedEvents("a batch holds a time stamp and a list of events")
    if not isinstance(rank, int):
        rank = None
    return EventBatch(
        ts=float(ts), events=[_decode_event(event) for event in events], data_parallel_rank=rank
    )


_POSITIONS: dict[str, tuple[str, ...]] = {
    "BlockStored": (
        "block_hashes",
        "parent_block_hash",
        "token_ids",
        "block_size",
        "lora_id",
        "medium",
        "lora_name",
        "extra_keys",
        "group_idx",
        "kv_cache_spec_kind",
    ),
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}

_TYPES: dict[str, type[BlockStored] | type[BlockRemoved] | type[AllBlocksCleared]] = {
    "BlockStored": BlockStored,
    "BlockRemoved": BlockRemoved,
    "AllBlocksCleared": AllBlocksCleared,
}


def _decode_event(raw: Any) -> KvEvent:
    if isinstance(raw, dict):
        tag = raw.get("type")
        fields = raw
    elif isinstance(raw, list) and raw:
        tag = raw[0]
        # Longer arrays come from newer versions: the fields we do not know are dropped.
        fields = dict(zip(_POSITIONS.get(str(tag), ()), raw[1:], strict=False))
        if isinstance(fields.get("lora_name"), dict):
            # SGLang (July to September 2026) puts a map of what is optional in the eighth place.
            fields |= {"lora_name": None} | fields["lora_name"]
    else:
        raise MalformedEvents("an event is a map or an array")
    if not isinstance(tag, str):
        raise MalformedEvents("an event names its type")
    struct = _TYPES.get(tag)
    if struct is None:
        return UnknownEvent(type=tag)
    token_ids = fields.get("token_ids")
    if isinstance(token_ids, list) and token_ids and isinstance(token_ids[0], list):
        # SGLang with EAGLE names (token, next token) pairs; the first of each is the text.
        token_ids = [pair[0] if isinstance(pair, list) and pair else pair for pair in token_ids]
        fields = {**fields, "token_ids": token_ids}
    try:
        event = msgspec.convert({**fields, "type": tag}, struct)
    except msgspec.ValidationError as error:
        raise MalformedEvents(f"{tag}: {error}") from error
    if isinstance(event, BlockStored):
        _check_stored(event)
    return event


def _check_stored(event: BlockStored) -> None:
    expected = len(event.block_hashes) * event.block_size
    if event.block_size < 1 or len(event.token_ids) != expected:
        raise MalformedEvents(
            f"BlockStored: {len(event.block_hashes)} blocks of {event.block_size} tokens, "
            f"but {len(event.token_ids)} token ids"
        )
    if event.extra_keys is not None and len(event.extra_keys) != len(event.block_hashes):
        raise MalformedEvents("BlockStored: extra_keys needs one entry a block")


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
        raise MalformedEvents(f"a replay message has 2 or 3 frames, not {len(body)}")
    seq, payload = body[-2:]
    return ReplayMessage(seq=decode_sequence_number(seq), payload=payload)
