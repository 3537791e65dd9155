"""SGLang's snapshots are read as its publisher writes them; what is none is refused."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.kv_events import MalformedEvents
from protocol.sglang_snapshot import PlacementReader, SnapshotRefused, epoch_of_topic

HEADER = [1, "life", 2, 8, 7, "barrier", 3]
CHUNKS = [[[None, [11]], [11, [12]]], [[12, [-13]]]]


def message(kind: bytes, body: Any = b"") -> list[bytes]:
    return [b"", kind, body if isinstance(body, bytes) else msgspec.msgpack.encode(body)]


WHOLE = [message(b"header", HEADER), *(message(b"chunk", one) for one in CHUNKS), message(b"end")]


@pytest.mark.parametrize("delimited", [True, False])
def test_a_snapshot_is_put_together_from_its_messages(delimited: bool) -> None:
    reader = PlacementReader()
    frames = WHOLE if delimited else [one[1:] for one in WHOLE]
    assert [reader.take(one) for one in frames] == [False, False, False, True]
    assert (reader.epoch, reader.rank, reader.resume_seq) == ("life", 2, 8)
    assert reader.hashes == {11, 12, -13}


def test_newer_headers_and_records_may_be_longer() -> None:
    reader = PlacementReader()
    reader.take(message(b"header", [*HEADER[:-1], 1, "more"]))
    reader.take(message(b"chunk", [[None, [b"\xff", 2], "more"]]))
    assert reader.take(message(b"end"))
    assert reader.hashes == {b"\xff", 2}


@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_worker_may_refuse_at_any_time(before: int) -> None:
    reader = PlacementReader()
    for one in WHOLE[:before]:
        reader.take(one)
    with pytest.raises(SnapshotRefused, match="provider busy"):
        reader.take(message(b"error", b"snapshot provider busy"))


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        pytest.param([[b"", b"header"]], "2 frames", id="a-frame-is-missing"),
        pytest.param([WHOLE[1]], "out of turn", id="chunk-first"),
        pytest.param([WHOLE[3]], "out of turn", id="end-first"),
        pytest.param([WHOLE[0], WHOLE[0]], "out of turn", id="two-headers"),
        pytest.param([message(b"greeting")], "out of turn", id="unknown-kind"),
        pytest.param([WHOLE[0], WHOLE[1], WHOLE[3]], "1 records early", id="chunk-lost"),
        pytest.param([*WHOLE[:3], WHOLE[1]], "more records", id="chunk-twice"),
        pytest.param([message(b"header", [2, *HEADER[1:]])], "version 2", id="version"),
        pytest.param([message(b"header", [*HEADER[:3], -1, *HEADER[4:]])], "resume_seq", id="seq"),
        pytest.param(
            [message(b"header", [*HEADER[:3], 2**64 - 1, *HEADER[4:]])], "resume_seq", id="last-seq"
        ),
        pytest.param([WHOLE[0], message(b"chunk", [])], "without records", id="empty-chunk"),
        pytest.param([message(b"header", HEADER[:-1])], "snapshot header", id="short-header"),
        pytest.param([message(b"header", b"\xc1")], "snapshot header", id="no-msgpack"),
        pytest.param([WHOLE[0], message(b"chunk", [[None, [1.5]]])], "snapshot chunk", id="hash"),
    ],
)
def test_what_is_no_snapshot_is_refused(messages: list[list[bytes]], what: str) -> None:
    reader = PlacementReader()
    for one in messages[:-1]:
        reader.take(one)
    with pytest.raises(MalformedEvents, match=what):
        reader.take(messages[-1])


@given(st.lists(st.lists(st.binary(max_size=9) | st.sampled_from([b"header", b"chunk", b"end"]))))
def test_random_messages_are_a_snapshot_or_refused(messages: list[list[bytes]]) -> None:
    reader = PlacementReader()
    with contextlib.suppress(MalformedEvents, SnapshotRefused):
        assert not any(reader.take(one) for one in messages)


@pytest.mark.parametrize(
    ("topic", "epoch"),
    [
        (b"", None),
        (b"kv-events", None),
        (b"\x00sgl-kv-epoch=life", "life"),
        (b"kv-events\x00sgl-kv-epoch=life", "life"),
        (b"kv-events\x00sgl-kv-epoch=life\x00sgl-kv-snapshot=barrier", "life"),
        (b"kv-events\x00sgl-kv-epoch=\xff", "�"),
    ],
)
def test_a_topic_may_name_the_life_of_the_engine(topic: bytes, epoch: str | None) -> None:
    assert epoch_of_topic(topic) == epoch
