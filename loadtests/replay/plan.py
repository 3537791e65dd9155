"""What is sent and when: a trace's requests as bodies, each made when it is asked for."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from loadtests.sim.request import SimRequest

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request.

    Attributes:
        number: Its place in the trace.
        due_s: When it comes, in seconds from the first one of the trace.
        prompt_tokens, output_tokens: How many it should have.
        body: JSON; empty for one that will not be sent.
    """

    number: int
    due_s: float
    prompt_tokens: int
    output_tokens: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """All of a trace's requests: how many, when the first comes, and the most tokens of one."""

    requests: int
    first_s: float
    tokens_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long prompts and answers are to be, of those the trace has.

    Attributes:
        scale: Tokens sent to tokens of the trace, above 0 and at most 1.
        max_tokens: No answer is asked to be longer.
    """

    scale: float = 1.0
    max_tokens: int | None = None

    def prompt_tokens(self, request: SimRequest) -> int:
        return max(1, round(len(request.prompt) * self.scale))

    def output_tokens(self, request: SimRequest) -> int:
        tokens = max(1, round(request.output_tokens * self.scale))
        return tokens if self.max_tokens is None else min(tokens, self.max_tokens)


def extent_of(requests: Iterable[SimRequest], lengths: Lengths) -> Extent:
    count, first_s, tokens_max = 0, 0.0, 0
    for request in requests:
        first_s = request.arrival_s if count == 0 else first_s
        count += 1
        tokens = lengths.prompt_tokens(request) + lengths.output_tokens(request)
        tokens_max = max(tokens_max, tokens)
    return Extent(requests=count, first_s=first_s, tokens_max=tokens_max)


class Writer(Protocol):
    def text(self, ids: "array[int]") -> str:
        """A prompt's token ids as text; equal beginnings are equal texts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Pure.

    Attributes:
        path: CHAT or COMPLETIONS.
        ignore_eos: Answers are asked to go on until they are as long as the trace's (a field of
            vLLM, SGLang and our replica).
    """

    model: str
    path: str
    lengths: Lengths
    writer: Writer
    ignore_eos: bool = False

    def plan(
        self, requests: Iterable[SimRequest], first_s: float, *, bodies: bool = True
    ) -> Iterator[Planned]:
        """
        Args:
            first_s: When the trace's first request comes: where the plan's time begins.
            bodies: False: empty ones, for requests that will not be sent.
        """
        for request in requests:
            yield Planned(
                number=request.number,
                due_s=request.arrival_s - first_s,
                prompt_tokens=self.lengths.prompt_tokens(request),
                output_tokens=self.lengths.output_tokens(request),
                body=self._body(request) if bodies else b"",
            )

    def _body(self, request: SimRequest) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            **prompt_fields(self.path, self.writer.text(request.prompt)),
            "max_tokens": self.lengths.output_tokens(request),
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            body["ignore_eos"] = True
        return msgspec.json.encode(body)


def prompt_fields(path: str, text: str) -> dict[str, Any]:
    """The fields of a body for `path` that hold its prompt."""
    if path == CHAT:
        return {"messages": [{"role": "user", "content": text}]}
    return {"prompt": text}
