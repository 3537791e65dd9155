"""What is asked: chats of several sizes, plain and streamed, each unlike any other or all the same.

A chat's number stands in each of its messages, so that no two chats share a sentence; the load
generator puts the numbers in while it sends.
"""

import json
import random
from collections.abc import Sequence

import msgspec

from loadtests.stand_in import MODEL

_NUMBER_DIGITS = 8
_PLACE = "#" * _NUMBER_DIGITS
_TEXT = """the night crew writes down every spare key before sunrise and "the harbour office" counts
them twice a week; a new colleague asks for the weather report, reads it aloud in the café, brings
back the old lanterns and repairs what the storm has broken on the first of the month as soon as the
bell rings: who takes care of the fuel tanks when the tide turns?"""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        size_bytes: Of a request's body, about.
        turns: Messages in the chat.
        events: Of the streamed answer; None: a plain one.
        repeated: Every request is the same.
    """

    name: str
    size_bytes: int
    turns: int = 1
    events: int | None = None
    repeated: bool = False


PLAIN = Case(name="plain, 1 KB", size_bytes=1000)
REPEATED = Case(name="plain, 1 KB, repeated", size_bytes=1000, repeated=True)
STREAM_20 = Case(name="stream of 20 chunks", size_bytes=1000, events=20)
STREAM_200 = Case(name="stream of 200 chunks", size_bytes=1000, events=200)
CHAT_64K = Case(name="chat of 32 turns, 64 KB", size_bytes=64_000, turns=32)
CHAT_400K = Case(name="chat of 64 turns, 400 KB", size_bytes=400_000, turns=64)
CASES = (PLAIN, REPEATED, STREAM_20, STREAM_200, CHAT_64K, CHAT_400K)


class Requests:
    """A case's requests as bytes, made in the time of one join."""

    def __init__(self, case: Case) -> None:
        body = body_of(case)
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode()
        self._parts: Sequence[bytes] = (head + body).split(_PLACE.encode())
        self._repeated = case.repeated

    def request(self, number: int) -> bytes:
        told = 0 if self._repeated else number % 10**_NUMBER_DIGITS
        return (b"%0*d" % (_NUMBER_DIGITS, told)).join(self._parts)


def body_of(case: Case) -> bytes:
    """A request with a place for its number in each message."""
    rng, words = random.Random(case.size_bytes), _TEXT.split()
    around = len('{"model":"m","messages":[],"stream":false}')
    each = (case.size_bytes - around) // case.turns - len('{"role":"assistant","content":""},')
    messages = []
    for turn in range(case.turns):
        said = f"Note {_PLACE}.{turn}:\n\n"
        while len(said) < each - 10:
            said += rng.choice(words) + " "
        messages.append({"role": "assistant" if turn % 2 else "user", "content": said})
    # A chat ends with the user's words.
    messages[-1]["role"] = "user"
    chat: dict[str, object] = {"model": MODEL, "messages": messages, "stream": bool(case.events)}
    if case.events:
        chat["max_tokens"] = case.events
    return json.dumps(chat, separators=(",", ":"), ensure_ascii=False).encode()
