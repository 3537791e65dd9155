"""Event batches decoded, in whichever dialect they were written: maps or arrays, old or new.

The common dialects (maps as vLLM 0.24 and later write them, arrays as vLLM to 0.23 and SGLang do)
are decoded straight into structs. What those decoders refuse is not yet wrong: it is looked at
piece by piece (`decode_batch_by_pieces`, which reads every dialect and says what is wrong).
"""

from typing import Any, cast

import msgspec

from protocol.kv_events import (
    AllBlocksCleared,
    BlockHash,
    BlockRemoved,
    BlockStored,
    EventBatch,
    KvEvent,
    Malformation,
    MalformedEvents,
    TokenId,
    UnknownEvent,
    check_stored,
)


class _MapEvents(msgspec.Struct, frozen=True, array_like=True, gc=False):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class _Array(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event as an array; fields in the order in which vLLM has declared them over time."""


class _StoredArray(_Array, frozen=True, array_like=True, tag="BlockStored", gc=False):
    block_hashes: list[BlockHash]
    parent_block_hash: BlockHash | None
    token_ids: list[TokenId]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: Any = None
    locality: str | None = None

    def event(self) -> BlockStored:
        return BlockStored(
            block_hashes=self.block_hashes,
            parent_block_hash=self.parent_block_hash,
            token_ids=self.token_ids,
            block_size=self.block_size,
            lora_id=self.lora_id,
            medium=self.medium,
            lora_name=self.lora_name,
            extra_keys=self.extra_keys,
            group_idx=self.group_idx,
            kv_cache_spec_kind=self.kv_cache_spec_kind,
            locality=self.locality,
        )


class _RemovedArray(_Array, frozen=True, array_like=True, tag="BlockRemoved", gc=False):
    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None

    def event(self) -> BlockRemoved:
        return BlockRemoved(
            block_hashes=self.block_hashes,
            medium=self.medium,
            group_idx=self.group_idx,
            locality=self.locality,
        )


class _ClearedArray(_Array, frozen=True, array_like=True, tag="AllBlocksCleared", gc=False):
    def event(self) -> AllBlocksCleared:
        return AllBlocksCleared()


class _ArrayEvents(msgspec.Struct, frozen=True, array_like=True, gc=False):
    ts: float
    events: list[_StoredArray | _RemovedArray | _ClearedArray]
    data_parallel_rank: int | None = None


_map_events_decoder = msgspec.msgpack.Decoder(_MapEvents)
_array_events_decoder = msgspec.msgpack.Decoder(_ArrayEvents)
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_batch(payload: bytes) -> EventBatch:
    """The batch in `payload`, whichever dialect it was written in.

    Raises:
        MalformedEvents: it is none.
    """
    batch = _decode_maps(payload) or _decode_arrays(payload)
    if batch is None:
        return decode_batch_by_pieces(payload)
    for event in batch.events:
        if isinstance(event, BlockStored):
            check_stored(event)
    return batch


def _decode_maps(payload: bytes) -> EventBatch | None:
    try:
        wire = _map_events_decoder.decode(payload)
    except _REFUSED:
        return None
    events = cast(list[KvEvent], wire.events)
    return EventBatch(ts=wire.ts, events=events, data_parallel_rank=wire.data_parallel_rank)


def _decode_arrays(payload: bytes) -> EventBatch | None:
    try:
        wire = _array_events_decoder.decode(payload)
    except _REFUSED:
        return None
    events: list[KvEvent] = [one.event() for one in wire.events]
    return EventBatch(ts=wire.ts, events=events, data_parallel_rank=wire.data_parallel_rank)


def decode_batch_by_pieces(payload: bytes) -> EventBatch:
    """What `decode_batch` says, for every dialect, slower.

    Raises:
        MalformedEvents: `payload` is no batch.
    """
    try:
        raw = msgspec.msgpack.decode(payload)
    except _REFUSED as error:
        raise MalformedEvents(Malformation.NOT_MSGPACK, f"not msgpack: {error}") from error
    if isinstance(raw, dict):
        ts, events, rank = raw.get("ts"), raw.get("events"), raw.get("data_parallel_rank")
    elif isinstance(raw, list) and len(raw) >= 2:
        ts, events, rank = raw[0], raw[1], raw[2] if len(raw) > 2 else None
    else:
        message = "a batch is a map or an array of at least two items"
        raise MalformedEvents(Malformation.BATCH, message)
    if isinstance(ts, bool) or not isinstance(ts, int | float) or not isinstance(events, list):
        message = "a batch holds a time stamp and a list of events"
        raise MalformedEvents(Malformation.BATCH, message)
    if isinstance(rank, bool) or not isinstance(rank, int):
        rank = None
    return EventBatch(
        ts=float(ts), events=[_decode_event(event) for event in events], data_parallel_rank=rank
    )


_TYPES: dict[str, tuple[type[BlockStored | BlockRemoved | AllBlocksCleared], tuple[str, ...]]] = {
    "BlockStored": (BlockStored, _StoredArray.__struct_fields__),
    "BlockRemoved": (BlockRemoved, _RemovedArray.__struct_fields__),
    "AllBlocksCleared": (AllBlocksCleared, ()),
}


def _decode_event(raw: Any) -> KvEvent:
    if isinstance(raw, dict):
        tag = raw.get("type")
    elif isinstance(raw, list) and raw:
        tag = raw[0]
    else:
        raise MalformedEvents(Malformation.EVENT, "an event is a map or an array")
    if not isinstance(tag, str):
        raise MalformedEvents(Malformation.EVENT, "an event names its type")
    if tag not in _TYPES:
        return UnknownEvent(type=tag)
    struct, positions = _TYPES[tag]
    # Longer arrays come from newer versions: the fields we do not know are dropped.
    fields = raw if isinstance(raw, dict) else dict(zip(positions, raw[1:], strict=False))
    if isinstance(fields.get("lora_name"), dict):
        # SGLang (July to September 2026) puts a map of what is optional in the eighth place.
        fields = {**fields, "lora_name": None, **fields["lora_name"]}
    token_ids = fields.get("token_ids")
    if isinstance(token_ids, list) and token_ids and isinstance(token_ids[0], list):
        # SGLang with EAGLE names (token, next token) pairs; the first of each is the text.
        token_ids = [pair[0] if isinstance(pair, list) and pair else pair for pair in token_ids]
        fields = {**fields, "token_ids": token_ids}
    try:
        event = msgspec.convert({**fields, "type": tag}, struct)
    except msgspec.ValidationError as error:
        raise MalformedEvents(Malformation.EVENT, f"{tag}: {error}") from error
    if isinstance(event, BlockStored):
        check_stored(event)
    return event
