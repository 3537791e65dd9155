"""Every dialect of KV events is read; what is none is refused by name."""

import base64
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.kv_dialects import decode_batch, decode_batch_by_pieces
from protocol.kv_events import (
    END_OF_REPLAY,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    KvEvent,
    MalformedEvents,
    ReplayMessage,
    Snapshot,
    UnknownEvent,
    check_stored,
    decode_replay_message,
    decode_sequence_number,
    decode_snapshot,
    encode_batch,
    encode_sequence_number,
    encode_snapshot,
    split_stored,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "kv-events.jsonl"
CAPTURES = Path(__file__).parents[3] / "shared" / "captures"
U64 = 2**64 - 1

hashes = st.integers(0, U64) | st.binary(min_size=1, max_size=32)
names = st.none() | st.text(max_size=5)


@st.composite
def stored_events(draw: st.DrawFn) -> BlockStored:
    block_hashes = draw(st.lists(hashes, max_size=3))
    size = draw(st.integers(1, 4))
    count = len(block_hashes)
    return BlockStored(
        block_hashes=block_hashes,
        parent_block_hash=draw(st.none() | hashes),
        token_ids=draw(st.lists(st.integers(0, 2**32), min_size=count * size,
                                max_size=count * size)),
        block_size=size,
        lora_id=draw(st.none() | st.integers(0, 9)),
        medium=draw(names),
        lora_name=draw(names),
        extra_keys=draw(st.none() | st.lists(st.none() | st.lists(st.text(max_size=3), max_size=2),
                                             min_size=count, max_size=count)),
        group_idx=draw(st.none() | st.integers(0, 3)),
        kv_cache_spec_kind=draw(names),
        locality=draw(names),
        cache_salt=draw(names),
    )  # fmt: skip


removed_events = st.builds(
    BlockRemoved,
    block_hashes=st.lists(hashes, max_size=3),
    medium=names,
    group_idx=st.none() | st.integers(0, 3),
)
events = stored_events() | removed_events | st.just(AllBlocksCleared())
batches = st.builds(
    EventBatch,
    ts=st.floats(0, 1e12),
    events=st.lists(events, max_size=4),
    data_parallel_rank=st.none() | st.integers(0, 7),
)


@given(batches)
def test_what_is_encoded_is_decoded_again(batch: EventBatch) -> None:
    assert decode_batch(encode_batch(batch)) == batch


snapshots = st.builds(
    Snapshot,
    epoch=st.text(),
    seq=st.integers(-1, 2**63),
    block_size=st.just(16),
    total_blocks=st.just(10),
    events=st.lists(stored_events(), max_size=3),
)


@given(snapshots)
def test_a_snapshot_survives_the_wire(snapshot: Snapshot) -> None:
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


STORED = BlockStored(
    block_hashes=[U64], parent_block_hash=7, token_ids=[1, 2], block_size=2, medium="GPU"
)
FULL = {
    "type": "BlockStored", "block_hashes": [U64], "parent_block_hash": 7, "token_ids": [1, 2],
    "block_size": 2, "medium": "GPU",
}  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(
            ["BlockStored", [U64], 7, [1, 2], 2, None],
            msgspec.structs.replace(STORED, medium=None),
            id="oldest-ends-at-lora-id",
        ),
        pytest.param(["BlockStored", [U64], 7, [1, 2], 2, None, "GPU"], STORED, id="sglang-seven"),
        pytest.param(
            ["BlockStored", [U64], 7, [1, 2], 2, None, "GPU", None, [None], 0, "full_attention"],
            msgspec.structs.replace(
                STORED, extra_keys=[None], group_idx=0, kv_cache_spec_kind="full_attention"
            ),
            id="vllm-0.23",
        ),
        pytest.param(
            [
                "BlockStored",
                [U64],
                7,
                [1, 2],
                2,
                None,
                "GPU",
                None,
                None,
                None,
                None,
                128,
                "LOCAL",
                "owner",
                "session",
                {"later": 1},
            ],
            msgspec.structs.replace(STORED, locality="LOCAL"),
            id="longer-than-we-know",
        ),
        pytest.param(
            ["BlockStored", [U64], 7, [1, 2], 2, None, "GPU", {"cache_salt": "a"}],
            msgspec.structs.replace(STORED, cache_salt="a"),
            id="sglang-salt-in-eighth-place",
        ),
        pytest.param(
            {**FULL, "cache_salt": "a", "session_id": "s"},
            msgspec.structs.replace(STORED, cache_salt="a"),
            id="sglang-salt-in-a-map",
        ),
        pytest.param(
            ["BlockStored", [U64], 7, [[1, 2], [2, 3]], 2, None, "GPU"], STORED, id="eagle-pairs"
        ),
        pytest.param(
            ["BlockStored", [b"\xff\x00"], b"\xfe", [1, 2], 2, None, "GPU"],
            msgspec.structs.replace(STORED, block_hashes=[b"\xff\x00"], parent_block_hash=b"\xfe"),
            id="hashes-are-bytes",
        ),
        pytest.param({**FULL, "remaining_copies": {"a": [1]}}, STORED, id="map-with-unknown-field"),
        pytest.param(["BlockRemoved", [U64]], BlockRemoved(block_hashes=[U64]), id="oldest-remove"),
        pytest.param(
            ["BlockRemoved", [1], "CPU_PINNED"],
            BlockRemoved(block_hashes=[1], medium="CPU_PINNED"),
            id="sglang-remove",
        ),
        pytest.param(
            {"type": "BlockRemoved", "block_hashes": [1], "locality": "REMOTE", "group_idx": 1},
            BlockRemoved(block_hashes=[1], group_idx=1, locality="REMOTE"),
            id="map-remove",
        ),
        pytest.param(
            {
                **FULL,
                "medium": "STORAGE",
                "locality": "REMOTE",
                "ownership": "t1",
                "session_id": "s",
            },
            msgspec.structs.replace(STORED, medium="STORAGE", locality="REMOTE"),
            id="vllm-0.28-and-later",
        ),
        pytest.param(
            {
                "type": "BlockStored",
                "block_hashes": [U64, 8],
                "parent_block_hash": None,
                "token_ids": [],
                "block_size": 0,
                "lora_id": None,
                "medium": "CPU",
                "lora_name": None,
            },
            BlockStored(
                block_hashes=[U64, 8],
                parent_block_hash=None,
                token_ids=[],
                block_size=0,
                medium="CPU",
            ),
            id="offloaded-blocks-named-by-hash-alone",
        ),
        pytest.param(
            ["BlockStored", [U64, 8], None, [], 16, None, "CPU"],
            BlockStored(
                block_hashes=[U64, 8],
                parent_block_hash=None,
                token_ids=[],
                block_size=16,
                medium="CPU",
            ),
            id="named-by-hash-alone-but-with-a-size",
        ),
        pytest.param(["AllBlocksCleared"], AllBlocksCleared(), id="cleared-array"),
        pytest.param({"type": "AllBlocksCleared"}, AllBlocksCleared(), id="cleared-map"),
        pytest.param(["BlockPinned", 1], UnknownEvent(type="BlockPinned"), id="unknown-array"),
        pytest.param({"type": "X", "a": 1}, UnknownEvent(type="X"), id="unknown-map"),
    ],
)
def test_every_dialect_of_an_event_means_the_same(raw: Any, expected: Any) -> None:
    for batch in ([1.5, [raw]], [1, [raw], None], [1.5, [raw], 3, "later"],
                  {"ts": 1.5, "events": [raw]},
                  {"ts": 1.5, "events": [raw], "data_parallel_rank": 3, "more": []}):  # fmt: skip
        assert decode_batch(msgspec.msgpack.encode(batch)).events == [expected]


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        pytest.param(7, "batch", id="a-number"),
        pytest.param([1.0], "batch", id="no-events"),
        pytest.param(["now", []], "batch", id="time-stamp-is-text"),
        pytest.param([True, []], "batch", id="time-stamp-is-a-boolean"),
        pytest.param([1.0, {}], "batch", id="events-are-a-map"),
        pytest.param({"events": []}, "batch", id="map-without-time-stamp"),
        pytest.param([1.0, [3]], "event", id="event-is-a-number"),
        pytest.param([1.0, [[]]], "event", id="event-is-empty"),
        pytest.param([1.0, [[7, []]]], "event", id="event-type-is-a-number"),
        pytest.param([1.0, [{"block_hashes": []}]], "event", id="event-without-type"),
        pytest.param([1.0, [{"type": "BlockStored"}]], "event", id="fields-are-missing"),
        pytest.param([1.0, [["BlockRemoved", [1.5]]]], "event", id="hash-is-a-fraction"),
        pytest.param([1.0, [{**FULL, "token_ids": [1]}]], "blocks", id="too-few-tokens"),
        pytest.param([1.0, [{**FULL, "token_ids": [1, -2]}]], "event", id="negative-token"),
        pytest.param([1.0, [{**FULL, "token_ids": [[1], "x"]}]], "event", id="pairs-of-nothing"),
        pytest.param([1.0, [{**FULL, "block_size": 0}]], "blocks", id="blocks-of-no-size"),
        pytest.param(
            [1.0, [{**FULL, "block_size": -1, "token_ids": []}]], "blocks", id="negative-size"
        ),
        pytest.param(
            [1.0, [{**FULL, "extra_keys": [None, None]}]], "blocks", id="too-many-extra-keys"
        ),
        pytest.param([1.0, [{**FULL, 3: 4}]], "event", id="field-named-by-a-number"),
    ],
)
def test_a_malformed_batch_is_refused_by_kind(raw: Any, kind: str) -> None:
    for decode in (decode_batch, decode_batch_by_pieces):
        with pytest.raises(MalformedEvents) as refused:
            decode(msgspec.msgpack.encode(raw))
        assert refused.value.kind == kind


def array_of(event: KvEvent) -> list[Any]:
    """As vLLM to 0.23 and SGLang write it."""
    if isinstance(event, BlockStored):
        return ["BlockStored", event.block_hashes, event.parent_block_hash, event.token_ids,
                event.block_size, event.lora_id, event.medium, event.lora_name, event.extra_keys,
                event.group_idx, event.kv_cache_spec_kind, None, event.locality]  # fmt: skip
    if isinstance(event, BlockRemoved):
        return ["BlockRemoved", event.block_hashes, event.medium, event.group_idx, event.locality]
    return ["AllBlocksCleared"]


@given(batches, st.booleans(), st.integers(0, 3), st.booleans())
def test_the_fast_way_says_what_the_thorough_one_says(
    batch: EventBatch, arrays: bool, left_out: int, stranger: bool
) -> None:
    raw: list[Any] = [array_of(one) if arrays else one for one in batch.events]
    if arrays:
        raw = [one[: len(one) - left_out] if len(one) > 8 else one for one in raw]
    if stranger:
        raw.append(["BlockPinned"] if arrays else {"type": "BlockPinned"})
    payload = msgspec.msgpack.encode([batch.ts, raw, batch.data_parallel_rank])
    assert decode_batch(payload) == decode_batch_by_pieces(payload)


def outcome(decode: Callable[[bytes], EventBatch], payload: bytes) -> EventBatch | str:
    try:
        return decode(payload)
    except MalformedEvents:
        return "malformed"


@given(batches, st.booleans(), st.integers(0, 10**6), st.integers(0, 255))
def test_of_damaged_batches_too(batch: EventBatch, arrays: bool, position: int, byte: int) -> None:
    raw = [array_of(one) if arrays else one for one in batch.events]
    payload = bytearray(msgspec.msgpack.encode([batch.ts, raw, batch.data_parallel_rank]))
    payload[position % len(payload)] = byte
    thorough = outcome(decode_batch_by_pieces, bytes(payload))
    fast = outcome(decode_batch, bytes(payload))
    # The fast way does not look into fields that it skips: there it may be the more tolerant one.
    assert thorough in ("malformed", fast)


@given(stored_events(), st.integers(1, 3))
def test_a_split_event_says_the_same_in_pieces(event: BlockStored, blocks_max: int) -> None:
    pieces = list(split_stored(event, blocks_max))
    assert all(len(one.block_hashes) <= blocks_max for one in pieces)
    above = event.parent_block_hash
    for piece in pieces:
        check_stored(piece)
        assert piece.parent_block_hash == above
        if piece.token_ids:
            above = piece.block_hashes[-1]
    assert [one for piece in pieces for one in piece.block_hashes] == event.block_hashes
    assert [one for piece in pieces for one in piece.token_ids] == event.token_ids
    if event.extra_keys is not None:
        assert [one for piece in pieces for one in piece.extra_keys or []] == event.extra_keys


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xc1", id="reserved-byte"),
        pytest.param(b"\x92\x01\x91\xa1\xff", id="text-that-is-not-utf-8"),
        pytest.param(b"\x91" * 100_000 + b"\x00", id="nested-without-end"),
    ],
)
def test_a_payload_that_is_no_msgpack_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedEvents):
        decode_batch(payload)
    with pytest.raises(MalformedEvents):
        decode_snapshot(payload)


@given(st.binary(max_size=60))
def test_random_bytes_are_a_batch_or_refused(payload: bytes) -> None:
    for decode in (decode_batch, decode_snapshot):
        with contextlib.suppress(MalformedEvents):
            decode(payload)


def test_a_snapshot_with_numbers_that_cannot_be_is_refused() -> None:
    good = Snapshot(epoch="e", seq=-1, block_size=2, total_blocks=1, events=[STORED])
    bad_event = msgspec.structs.replace(STORED, token_ids=[1])
    for bad in ({"seq": -2}, {"events": [bad_event]}):
        with pytest.raises(MalformedEvents):
            decode_snapshot(encode_snapshot(msgspec.structs.replace(good, **bad)))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        pytest.param([b"", b"\0" * 8, b"p"], ReplayMessage(seq=0, payload=b"p"), id="no-topic"),
        pytest.param([b"", b"kv", b"\0" * 7 + b"\x05", b"p"],
                     ReplayMessage(seq=5, payload=b"p"), id="topic"),
        pytest.param([b"", b"", b"\0" * 8, b"p"],
                     ReplayMessage(seq=0, payload=b"p"), id="empty-topic"),
        pytest.param([b"", END_OF_REPLAY, b""], None, id="end-before-0.26"),
        pytest.param([b"", b"", END_OF_REPLAY, b""], None, id="end-since-0.26"),
    ],
)  # fmt: skip
def test_replays_come_with_and_without_topic(
    frames: list[bytes], expected: ReplayMessage | None
) -> None:
    assert decode_replay_message(frames) == expected


@pytest.mark.parametrize("frames", [[], [b""], [b"", b"x"], [b"", b"", b"short", b"p"],
                                    [b"", b"t", b"\0" * 8, b"p", b"more"]])  # fmt: skip
def test_other_frames_are_no_replay(frames: list[bytes]) -> None:
    with pytest.raises(MalformedEvents):
        decode_replay_message(frames)


@given(st.integers(0, U64))
def test_sequence_numbers_are_eight_bytes(seq: int) -> None:
    assert decode_sequence_number(encode_sequence_number(seq)) == seq
    with pytest.raises(MalformedEvents):
        decode_sequence_number(encode_sequence_number(seq)[1:])


def frames_of(file: Path) -> list[list[bytes]]:
    lines = map(json.loads, file.read_text().splitlines())
    return [
        [base64.b64decode(one) for one in (line["frames"] if isinstance(line, dict) else line)]
        for line in lines
    ]


@pytest.mark.parametrize("file", [GOLDEN, CAPTURES / "vllm-0.32.0-kv-events.jsonl"],
                         ids=["ours", "vllm-0.32"])  # fmt: skip
def test_recorded_live_traffic_decodes(file: Path) -> None:
    if not file.exists():
        assert file != GOLDEN
        pytest.skip(f"{file} is not here")
    messages = frames_of(file)
    assert [decode_sequence_number(one[1]) for one in messages] == list(range(len(messages)))
    decoded = [event for one in messages for event in decode_batch(one[2]).events]
    assert {type(one) for one in decoded} >= {BlockStored, AllBlocksCleared}


def test_a_recorded_replay_decodes() -> None:
    file = CAPTURES / "vllm-0.32.0-kv-replay.jsonl"
    if not file.exists():
        pytest.skip(f"{file} is not here")
    *messages, end = map(decode_replay_message, frames_of(file))
    assert end is None
    assert [one.seq for one in messages if one] == list(range(len(messages)))
    assert all(decode_batch(one.payload).events for one in messages if one)
