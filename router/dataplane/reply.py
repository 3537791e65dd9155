"""An answer on its way to the client: relayed as it comes, and ended so that the client can tell.

    any answer       ──raw bytes, framing included──▶ client
    event stream     ──payload──▶ whole events only ──our chunks──▶ client

Streams are passed on event by event, so that after any of them a stream that broke can go on with
events from another replica, or end with one that says why. The events are not decoded.
"""

from protocol import sse
from protocol.errors import ProtocolError, encode_error
from router.core.answer_scan import AnswerScan, AnswerUsage
from router.dataplane.http1 import (
    LAST_CHUNK,
    Header,
    Request,
    ResponseHead,
    chunk,
    response_head,
)
from router.dataplane.route import Client, EventLog, Rewriter

_EVENT_ENDS = (b"\n\n", b"\n\r\n")
_ERROR_EVENT = b'data: {"error":'
_MAX_HELD_BYTES = 1024 * 1024


class Reply:
    """The client's side of an exchange. States: not begun, relaying, over."""

    __slots__ = (
        "_as_events", "_chunked", "_client", "_held", "_keep_alive", "_log", "_passes_on",
        "_request", "_rewriter", "_scan", "_unsent_head", "begun", "reported", "sent",
    )  # fmt: skip

    def __init__(self, client: Client, request: Request, log: EventLog | None) -> None:
        """
        Args:
            log: Told every whole event of a stream that was relayed.
        """
        self.begun = False  # the head is made
        self.sent = False  # the client has got a byte
        self.reported = b""  # by an error event, instead of the rest of a stream
        self._client = client
        self._request = request
        self._log = log
        self._rewriter: Rewriter | None = None
        self._unsent_head = b""
        self._held = b""
        self._passes_on = False  # chunks may go through as they are

    def begin(self, head: ResponseHead, added: list[Header]) -> None:
        """The answer's head is known; it goes out with the first bytes after it."""
        old_client = self._request.version == "1.0"
        self.begun = True
        bodiless = self._request.method == b"HEAD" or head.status in (204, 304)
        self._as_events = head.is_event_stream and head.content_length is None and not bodiless
        self._chunked = self._as_events and head.chunked and not old_client
        if not self._as_events:
            self._log = None
        self._scan = AnswerScan(is_stream=head.is_event_stream)
        chunked = head.chunked and not old_client
        delimited = chunked or head.content_length is not None or bodiless
        # The client's wish, unless only closing can tell it where the body ends.
        self._keep_alive = delimited and self._client.stays_open(self._request)
        self._unsent_head = response_head(
            head, added=added, chunked=chunked, keep_alive=self._keep_alive
        )

    def continue_with(self, rewriter: Rewriter | None) -> None:
        """What follows comes from another replica; `rewriter` makes it fit."""
        self._rewriter = rewriter
        self._passes_on = self._chunked and rewriter is None
        self._held = self.reported = b""  # of the event that broke

    def relay(self, data: bytes, framed: bytes = b"") -> None:
        """Some more of the answer; nothing at all only sends the head.

        Args:
            framed: The same as one chunk, if there is such a thing.
        """
        log = self._log
        if (
            framed
            and log is not None
            and self._passes_on
            and not self._held
            and data.endswith(_EVENT_ENDS)
            and _ERROR_EVENT not in data
        ):  # the most frequent case: the chunk around the events is what the client should get
            log.add(data)
            self._client.write(framed)
            return
        if self._as_events:
            data = self._whole_events(data)
            if not data:
                return
            if log is not None and (at := data.find(_ERROR_EVENT)) >= 0:
                data, self.reported = data[:at], data[at + len(_ERROR_EVENT) :]
                if not data:
                    return
            self._note(data)
            if self._chunked:
                data = chunk(data)
        else:
            self._scan.feed(data)
        self._write(data)

    def end(self) -> None:
        """The answer is whole."""
        rest, self._held = self._held, b""
        if rest:
            self._note(rest)  # its last event lacked the blank line
            if self._chunked:
                rest = chunk(rest)
        self._write(rest + LAST_CHUNK if self._chunked else rest)
        self._client.exchange_done(keep_alive=self._keep_alive)

    def ends_here(self) -> bool:
        """Ends it if all was said, and only its very end has not come."""
        end = self._log.end() if self._log is not None and self.sent else None
        if end is None:
            return False
        self._held = end
        self.end()
        return True

    def break_off(self, error: ProtocolError, message: str) -> None:
        """There is no more: the client is told, not left guessing."""
        if not self._as_events:
            self._client.abort()
            return
        event = sse.frame(encode_error(message, type=error.type, code=error.code))
        self._write(chunk(event) + LAST_CHUNK if self._chunked else event)
        self._client.exchange_done(keep_alive=False)

    def usage(self) -> AnswerUsage:
        return self._scan.usage() if self._log is None else self._log.usage()

    # inside

    def _whole_events(self, data: bytes) -> bytes:
        """What can be passed on: up to the end of the last whole event."""
        if self._held:
            data, self._held = self._held + data, b""
        if not data.endswith(_EVENT_ENDS):
            end = _end_of_events(data)
            if len(data) - end < _MAX_HELD_BYTES:  # else, whatever it is, we do not keep it
                data, self._held = data[:end], data[end:]
        return data if self._rewriter is None or not data else self._rewriter.rewrite(data)

    def _note(self, events: bytes) -> None:
        if self._log is not None:
            self._log.add(events)
        else:
            self._scan.feed(events)

    def _write(self, data: bytes) -> None:
        if self._unsent_head:
            data, self._unsent_head = self._unsent_head + data, b""
        if not self.sent:
            self.sent = True
            self._passes_on = self._chunked
        self._client.write(data)


def _end_of_events(data: bytes) -> int:
    """Where the last whole event in `data` ends; 0: there is none."""
    return max(at + len(mark) if (at := data.rfind(mark)) >= 0 else 0 for mark in _EVENT_ENDS)
