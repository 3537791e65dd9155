"""Snapshots, replays and sequence numbers survive the wire; what is none is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    check_stored,
    decode_replay_message,
    decode_sequence_number,
    decode_snapshot,
    encode_batch,
    encode_sequence_number,
    encode_snapshot,
    portions,
    split_removed,
    split_stored,
)
from tests.support.kv_event_strategies import U64, stored_events

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


def test_what_vllm_writes_though_it_is_nothing_we_write_too() -> None:
    """As vLLM 0.32 does, of a block in no LoRA; vllm-router refuses events without `lora_id`."""
    bare = BlockStored(block_hashes=[1], parent_block_hash=None, token_ids=[1, 2], block_size=2)
    batch = EventBatch(ts=0.0, events=[bare, BlockRemoved(block_hashes=[1])])
    stored, removed = msgspec.msgpack.decode(encode_batch(batch))[1]
    assert {name for name, value in stored.items() if value is None} == {
        *("parent_block_hash", "lora_id", "medium", "lora_name"),
    }
    assert {name for name, value in removed.items() if value is None} == {"medium"}


OTHERS = st.one_of(
    st.lists(st.integers(0, 9), min_size=1, max_size=7).map(
        lambda hashes: BlockRemoved(block_hashes=list(hashes))
    ),
    st.just(AllBlocksCleared()),
)
STORED = BlockStored(
    block_hashes=[U64], parent_block_hash=7, token_ids=[1, 2], block_size=2, medium="GPU"
)


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


@given(st.lists(st.one_of(stored_events(), OTHERS), max_size=8), st.integers(1, 5))
def test_portions_say_the_same_in_the_same_order(events: list[KvEvent], blocks_max: int) -> None:
    some = list(portions(events, blocks_max))
    assert all(some)
    for portion in some:
        assert sum(len(getattr(one, "block_hashes", "?")) for one in portion[:-1]) < blocks_max
    pieces = [
        piece
        for event in events
        for piece in (
            split_stored(event, blocks_max)
            if isinstance(event, BlockStored)
            else split_removed(event, blocks_max)
            if isinstance(event, BlockRemoved)
            else (event,)
        )
    ]
    assert [one for portion in some for one in portion] == pieces


def test_a_snapshot_with_numbers_that_cannot_be_is_refused() -> None:
    good = Snapshot(epoch="e", seq=-1, block_size=2, total_blocks=1, events=[STORED])
    bad_event = msgspec.structs.replace(STORED, token_ids=[1])
    for bad in (
        {"seq": -2},
        {"events": [bad_event]},
        {"block_size": 0},
        {"block_size": -16},
        {"total_blocks": -1},
    ):
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


@given(st.integers(0, U64 - 1))
def test_sequence_numbers_are_eight_bytes(seq: int) -> None:
    assert decode_sequence_number(encode_sequence_number(seq)) == seq
    with pytest.raises(MalformedEvents):
        decode_sequence_number(encode_sequence_number(seq)[1:])
