"""Every dialect of event batches is read, fast or thoroughly; what is none is refused by name."""

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
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    MalformedEvents,
    UnknownEvent,
    decode_replay_message,
    decode_sequence_number,
    decode_snapshot,
    encode_batch,
)
from tests.support.kv_event_strategies import U64, array_of, batches

GOLDEN = Path(__file__).parent.parent / "golden" / "kv-events.jsonl"
CAPTURES = Path(__file__).parents[3] / "shared" / "captures"


@given(batches)
def test_what_is_encoded_is_decoded_again(batch: EventBatch) -> None:
    assert decode_batch(encode_batch(batch)) == batch


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
