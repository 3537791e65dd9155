"""Takes the chunk framing off a relayed body, for clients that only speak HTTP/1.0."""

import httptools


class Dechunker:
    """Fed with raw bytes; gives back what the chunks held."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def feed(self, data: bytes) -> bytes:
        self._parser.feed_data(data)
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole
