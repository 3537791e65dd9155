"""What the router reads off an answer that passes through: its usage.

Nothing is decoded on the way. Usage stands near the end of an answer (in a stream: in the last
event before [DONE]), so the last bytes are kept and searched once, after the answer has ended.
"""

import re

# In a stream usage is among the last events. A whole answer may have long lists after it (vLLM's
# prompt_token_ids), and comes in few pieces, so that keeping more of it costs little.
_STREAM_TAIL_BYTES = 4096
_WHOLE_TAIL_BYTES = 256 * 1024
_USAGE = b'"usage"'
# Of more digits than any count of tokens has, none is taken.
_NUMBERS = re.compile(rb'"(prompt_tokens|completion_tokens|cached_tokens)"\s*:\s*(\d{1,9})(?!\d)')


class AnswerUsage:
    """Token counts an answer reported; None where it did not."""

    __slots__ = ("cached_tokens", "completion_tokens", "prompt_tokens")

    def __init__(
        self,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        cached_tokens: int | None = None,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens


class AnswerScan:
    """Fed with an answer's raw bytes as they are relayed."""

    __slots__ = ("_tail", "_tail_bytes")

    def __init__(self, *, is_stream: bool) -> None:
        self._tail = b""
        self._tail_bytes = _STREAM_TAIL_BYTES if is_stream else _WHOLE_TAIL_BYTES

    def feed(self, data: bytes) -> None:
        if len(data) >= self._tail_bytes:
            self._tail = data[-self._tail_bytes :]
        else:
            self._tail = (self._tail + data)[-self._tail_bytes :]

    def usage(self) -> AnswerUsage:
        """As far as no chunk frame cuts through it."""
        return usage_in(self._tail)


def usage_in(tail: bytes) -> AnswerUsage:
    """What the last usage object says in the last bytes of an answer."""
    start = tail.rfind(_USAGE)
    found = AnswerUsage()
    if start >= 0:
        for name, value in _NUMBERS.findall(tail, start):
            setattr(found, name.decode(), int(value))
    return found
