"""Events come out of a stream of bytes the same however it is cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import sse

lines = st.binary(max_size=20).map(lambda one: one.replace(b"\r", b".").replace(b"\n", b"."))
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(
    st.lists(st.lists(lines, min_size=1, max_size=3), max_size=5),
    line_ends,
    st.lists(st.integers(0, 300)),
    st.sampled_from([b"", b": a comment", b"event: x", b"id:7", b"retry"]),
)
def test_any_chunking_and_line_end_gives_the_same_events(
    events: list[list[bytes]], end: bytes, cuts: list[int], noise: bytes
) -> None:
    stream = b""
    for event in events:
        stream += noise + end if noise else b""
        stream += b"".join(b"data: " + line + end for line in event) + end
    stream += b":" + end  # so that a last CR is not the last byte
    borders = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parser = sse.EventParser()
    found = [
        event for start, stop in pairwise(borders) for event in parser.feed(stream[start:stop])
    ]
    assert found == [b"\n".join(event) for event in events]


def test_our_frames_are_events_and_done_is_the_last() -> None:
    parser = sse.EventParser()
    assert parser.feed(sse.frame(b'{"a":1}') + sse.DONE) == [b'{"a":1}', b"[DONE]"]


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 200, b"data: 1234567\n" * 20],
                         ids=["one-line", "many-lines"])  # fmt: skip
def test_an_event_without_end_is_refused(stream: bytes) -> None:
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        sse.EventParser(max_event_bytes=100).feed(stream)
