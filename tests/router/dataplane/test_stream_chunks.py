"""However a stream's chunks are spelt and cut, its events come out, and end, the same."""

from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.dataplane.http1 import ResponseHead
from router.dataplane.replica_connection import ReplicaConnection

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SPELLINGS = [b"%x\r\n", b"%X\r\n", b"0%x\r\n", b"%x;a=b\r\n"]


class Unframed:
    """Who takes an answer without its framing."""

    def __init__(self) -> None:
        self.connection = ReplicaConnection(self, 1000)
        transport = mock.Mock()
        transport.get_write_buffer_size.return_value = 0
        self.connection.connection_made(transport)
        self.connection.send(b"", b"", self, head_only=False)
        self.body = b""
        self.as_they_came = 0
        self.end = ""

    def answer_head(self, head: ResponseHead) -> None:
        self.connection.unframe()

    def answer_bytes(self, data: bytes, framed: bytes = b"") -> None:
        self.body += data
        if framed:
            self.as_they_came += 1
            assert framed.lower() == b"%x\r\n%b\r\n" % (len(data), data.lower())
            assert data in framed

    def answer_ended(self) -> None:
        self.end = "ended"

    def answer_broken(self, reason: str) -> None:
        self.end = reason

    def connection_idle(self, connection: ReplicaConnection) -> None: ...
    def connection_gone(self, connection: ReplicaConnection) -> None: ...


def take(pieces: list[bytes]) -> Unframed:
    taken = Unframed()
    for piece in pieces:
        if not taken.end:
            taken.connection.data_received(piece)
    return taken


def chunk(data: bytes, spelling: bytes = b"%x\r\n") -> bytes:
    return spelling % len(data) + data + b"\r\n"


@given(st.data())
def test_chunks_come_out_as_what_is_in_them(data: st.DataObject) -> None:
    texts = st.sampled_from(
        [b"a", b"data: 1\n\n", b"x" * 30, b"\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n"]
    )
    said = data.draw(st.lists(texts, max_size=8))
    chunks = [chunk(text, data.draw(st.sampled_from(SPELLINGS))) for text in said]
    pieces = [HEAD, *chunks, b"0\r\n\r\n"]
    whole = b"".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=3))
    if data.draw(st.booleans()):  # mostly at the chunks' ends, as replicas send them
        ends = [sum(map(len, pieces[:n])) for n in range(len(pieces))]
        cuts = [*cuts, *ends]
    edges = sorted({0, *cuts, len(whole)})
    taken = take([whole[i:j] for i, j in pairwise(edges)])
    assert taken.body == b"".join(said)
    assert taken.end == "ended"


def test_a_chunk_that_comes_alone_is_passed_on_as_it_came() -> None:
    taken = take([HEAD, chunk(b"one"), chunk(b"two"), chunk(b"x" * 300), b"0\r\n\r\n"])
    assert taken.end == "ended"
    assert taken.as_they_came == 2  # the parser has to see where the first one begins


@pytest.mark.parametrize(
    "broken",
    [
        b"+3\r\nabc\r\n", b"0x3\r\nabc\r\n", b" 3\r\nabc\r\n", b"-3\r\nabc\r\n", b"\r\nabc\r\n",
        b"3\nabc\r\n", b"2\r\nabc\r\n", b"4\r\nabc\r\nx", b"g\r\nabc\r\n", b"3_\r\nabc\r\n",
    ],
)  # fmt: skip
def test_a_chunk_of_no_length_breaks_the_stream(broken: bytes) -> None:
    taken = take([HEAD, chunk(b"one"), chunk(b"two"), broken])
    assert taken.body.startswith(b"onetwo")
    assert "broke HTTP" in taken.end


def test_after_part_of_a_chunk_the_rest_is_no_chunk_of_its_own() -> None:
    taken = take([HEAD, chunk(b"one"), b"c\r\nabc", b"3\r\nabc\r\n", b"z\r\n", b"0\r\n\r\n"])
    assert taken.body == b"oneabc3\r\nabc\r\nz"
    assert taken.end == "ended"
