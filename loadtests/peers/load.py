"""The load: simulated requests as text, sent when they are due, and what came back when.

Open loop: nobody waits for an answer before the next request goes out, and an answer's time counts
from when its request was due.
"""

import asyncio
from array import array
from collections.abc import Iterable, Sequence

import aiohttp
import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtests.sim.request import SimRequest
from loadtests.stand_in import MODEL
from protocol.openai import Usage

COMPLETIONS = "/v1/completions"
_DATA = b"data:"
_DONE = b"[DONE]"
_TAIL_BYTES = 4096
_REFUSAL_BYTES = 300
ANSWER_TIMEOUT_S = 300.0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        due_s: From the beginning.
        tokens: Of its prompt.
        body: JSON.
    """

    due_s: float
    tokens: int
    body: bytes


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        first_s, last_s: From when it was due to its first and last byte of text; None: none came.
        late_s: How long after it was due it was sent: the load generator's doing.
        error: Why it is no whole answer.
    """

    first_s: float | None = None
    last_s: float | None = None
    late_s: float
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str | None = None


class _Last(msgspec.Struct, frozen=True):
    usage: Usage | None = None


_usage_decoder = msgspec.json.Decoder(_Last)


class Words:
    """Token ids of any vocabulary of 2³² as words of one token each: equal ids, equal words."""

    def __init__(self, words: Sequence[str]) -> None:
        """
        Args:
            words: Each with the space before it.
        """
        self._words = np.array(words, object)

    def text(self, ids: "array[int]") -> str:
        found = self._words[_mixed(np.frombuffer(ids, np.uint32)) % np.uint32(len(self._words))]
        return "".join(found.tolist())


def _mixed(ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Neighbours far apart. Source: MurmurHash3's 32-bit finaliser (Appleby 2011)."""
    ids = (ids ^ (ids >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    ids = (ids ^ (ids >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return ids ^ (ids >> np.uint32(16))


def asked_of(requests: Iterable[SimRequest], words: Words) -> list[Asked]:
    """Their bodies; the first is due at once."""
    asked: list[Asked] = []
    begin_s = None
    for request in requests:
        begin_s = request.arrival_s if begin_s is None else begin_s
        body = {
            "model": MODEL,
            "prompt": words.text(request.prompt),
            "max_tokens": request.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        asked.append(
            Asked(
                due_s=request.arrival_s - begin_s,
                tokens=len(request.prompt),
                body=msgspec.json.encode(body),
            )
        )
    return asked


async def offer(url: str, asked: Sequence[Asked]) -> list[Answered]:
    """Sends all when they are due; an outcome for each, in the same order."""
    loop = asyncio.get_running_loop()
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        begin_s = loop.time()
        async with asyncio.TaskGroup() as tasks:
            answers = []
            for one in asked:
                due_s = begin_s + one.due_s
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                answers.append(tasks.create_task(_answer(session, url, one.body, due_s)))
    return [task.result() for task in answers]


async def _answer(session: aiohttp.ClientSession, url: str, body: bytes, due_s: float) -> Answered:
    loop = asyncio.get_running_loop()
    late_s = loop.time() - due_s
    first_s = last_s = None
    tail = b""
    try:
        headers = {"content-type": "application/json"}
        async with session.post(url + COMPLETIONS, data=body, headers=headers) as response:
            if response.status != 200:
                said = (await response.content.read(_REFUSAL_BYTES)).decode(errors="replace")
                return Answered(late_s=late_s, error=f"{response.status}: {said}")
            async for piece in response.content.iter_any():
                if first_s is None and _DATA in piece:
                    first_s = loop.time() - due_s
                last_s = loop.time() - due_s
                tail = (tail + piece)[-_TAIL_BYTES:]
    except (aiohttp.ClientError, TimeoutError) as error:
        return Answered(late_s=late_s, error=f"{type(error).__name__}: {error}")
    usage = usage_in(tail)
    if usage is None or first_s is None:
        return Answered(late_s=late_s, error="the stream ended without its usage")
    details = usage.prompt_tokens_details
    return Answered(
        first_s=first_s,
        last_s=last_s,
        late_s=late_s,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=details.cached_tokens if details else 0,
    )


def usage_in(tail: bytes) -> Usage | None:
    """What the end of a stream says of its tokens; None if it says nothing, or is not the end."""
    events = [line[len(_DATA) :].strip() for line in tail.splitlines() if line.startswith(_DATA)]
    if len(events) < 2 or events[-1] != _DONE:
        return None
    try:
        return _usage_decoder.decode(events[-2]).usage
    except msgspec.DecodeError:
        return None
