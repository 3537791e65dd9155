"""Server-sent events as OpenAI's API frames them: `data: <json>` and a blank line, `[DONE]` last.

Source: WHATWG HTML, "Server-sent events"; OpenAI streaming adds the `[DONE]` sentinel.
"""

DONE = b"data: [DONE]\n\n"


def frame(payload: bytes) -> bytes:
    """One event holding `payload`, which holds no line break (msgspec's JSON never does)."""
    return b"data: " + payload + b"\n\n"


class EventParser:
    """Bytes in as they arrive, event data out: splits at blank lines whatever the chunking.

    Accepts LF, CRLF and CR line ends. Comments and fields other than `data` are skipped.
    """

    def __init__(self, max_event_bytes: int = 8 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._tail = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that `chunk` completes, in order.

        Raises:
            ValueError: an event grew beyond `max_event_bytes`.
        """
        buffer = self._tail + chunk
        events: list[bytes] = []
        position = 0
        while (line_end := _line_end(buffer, position)) is not None:
            end, next_position = line_end
            self._take_line(buffer[position:end], events)
            position = next_position
        self._tail = buffer[position:]
        if len(self._tail) + sum(map(len, self._data)) > self._max_event_bytes:
            raise ValueError(f"an event is larger than {self._max_event_bytes} bytes")
        return events

    def _take_line(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))


def _line_end(buffer: bytes, start: int) -> tuple[int, int] | None:
    """(end of the line at `start`, start of the next line), or None while it is incomplete."""
    lf = buffer.find(b"\n", start)
    cr = buffer.find(b"\r", start, lf if lf >= 0 else len(buffer))
    if cr < 0:
        return None if lf < 0 else (lf, lf + 1)
    if cr + 1 == len(buffer):
        return None  # a LF may follow in the next chunk
    return (cr, cr + 2) if buffer[cr + 1] == 0x0A else (cr, cr + 1)
