"""The load: simulated requests as text, sent when they are due, and what came back when.

Open loop: nobody waits for an answer before the next request goes out, and an answer's time counts
from when its request was due.
"""

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain

import aiohttp
import msgspec
import numpy as np

from loadtests.overhead.contestants import MODEL_PATH
from loadtests.replay.client import open_session
from loadtests.replay.drive import Clock, MonotonicClock, Turn, drive
from loadtests.replay.plan import COMPLETIONS, Lengths, Planned, Planner
from loadtests.replay.prompts import mixed
from loadtests.sim.request import SimRequest
from loadtests.stand_in import MODEL
from protocol.openai import Usage

_DATA = b"data:"
_DONE = b"[DONE]"
_TAIL_BYTES = 4096
_REFUSAL_BYTES = 300
ANSWER_TIMEOUT_S = 300.0
# What a router is asked until it answers.
FIRST_CHAT = msgspec.json.encode(
    {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
)


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

    @classmethod
    def of_model(cls) -> "Words":
        """Those that are one token each to the replicas' tokenizer."""
        from prompt.assets import resolve_model_path
        from replica.simulated.load import words_of
        from replica.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(resolve_model_path(MODEL_PATH))
        return cls([tokenizer.decode([token]) for token in words_of(tokenizer)])

    def text(self, ids: "array[int]") -> str:
        found = self._words[mixed(np.frombuffer(ids, np.uint32)) % np.uint32(len(self._words))]
        return "".join(found.tolist())


def plan_of(
    requests: Iterable[SimRequest], words: Words, *, ignore_eos: bool = False
) -> list[Planned]:
    """Their bodies; the first is due at once.

    Args:
        ignore_eos: Answers are as long as they are simulated to be, whatever the model says.
    """
    coming = iter(requests)
    first = next(coming, None)
    if first is None:
        return []
    planner = Planner(
        model=MODEL, path=COMPLETIONS, lengths=Lengths(), writer=words, ignore_eos=ignore_eos
    )
    return list(planner.plan(chain([first], coming), first.arrival_s))


async def offer(url: str, plan: Sequence[Planned]) -> list[Answered]:
    """Sends all when they are due; an outcome for each, in the same order."""
    clock = MonotonicClock()
    answers: dict[int, Answered] = {}
    async with open_session(None, ANSWER_TIMEOUT_S) as session:

        async def send(request: Planned, turn: Turn) -> None:
            answers[request.number] = await _answer(session, url, request.body, turn, clock)

        await drive(plan, send, clock, clock.now_s(), on_schedule=True)
    return [answers[request.number] for request in plan]


async def _answer(
    session: aiohttp.ClientSession, url: str, body: bytes, turn: Turn, clock: Clock
) -> Answered:
    """Reads no more of a stream than it must: load and replicas share the machine."""
    due_s = turn.scheduled_s
    late_s = clock.now_s() - due_s
    first_s = last_s = None
    tail = b""
    try:
        async with session.post(url + COMPLETIONS, data=body) as response:
            if response.status != 200:
                said = (await response.content.read(_REFUSAL_BYTES)).decode(errors="replace")
                return Answered(late_s=late_s, error=f"{response.status}: {said}")
            async for piece in response.content.iter_any():
                if first_s is None and _DATA in piece:
                    first_s = clock.now_s() - due_s
                last_s = clock.now_s() - due_s
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
