"""What every handler of the API needs, in one place."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from prompt.chat_template import ChatTemplate
from protocol.errors import BadRequest, Overloaded, RequestTimedOut
from replica.api.text import Detokenizer
from replica.config import ReplicaConfig
from replica.engine.client import RETRY_AFTER_S, EngineClient
from replica.metrics import ReplicaMetrics
from replica.sampling_defaults import OPENAI_DEFAULTS, SamplingDefaults

_INLINE_CHARACTERS = 500
"""Longer texts are tokenised in a thread: some 150 tokens, below 1 ms, are not worth the trip."""


class Tokenizer(Protocol):
    """`replica.tokenizer.Tokenizer`, or a fake. Safe to use from several threads."""

    @property
    def eos_token_ids(self) -> Iterable[int]: ...

    @property
    def longest_token_characters(self) -> int: ...

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...

    def detokenizer(self) -> Detokenizer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The part of the model that the API process holds.

    Attributes:
        chat_template: None when the model has none: then it cannot chat.
        sampling: What holds where a client does not say.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    sampling: SamplingDefaults = OPENAI_DEFAULTS

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) <= _INLINE_CHARACTERS:
            return self.tokenizer.encode(text, add_special_tokens)
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens)

    async def decode(self, token_ids: list[int]) -> str:
        if len(token_ids) <= _INLINE_CHARACTERS:
            return self.tokenizer.decode(token_ids)
        return await asyncio.to_thread(self.tokenizer.decode, token_ids)


@dataclass(slots=True, kw_only=True)
class ApiContext:
    """What lives as long as the server.

    Attributes:
        random_seed: A fresh 63-bit seed at each call.
        model: Set once the model is loaded.
        num_requests: Requests being answered that hold a text or a sequence.
    """

    config: ReplicaConfig
    client: EngineClient
    metrics: ReplicaMetrics
    random_seed: Callable[[], int]
    started_at_s: int
    model: ServedModel | None = None
    num_requests: int = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One more request that holds a text or a sequence is being answered while this is held.

        Raises:
            Overloaded: as many are as the engine takes; better told before than after tokenising.
        """
        engine = self.config.engine
        if self.num_requests >= engine.max_running_sequences + engine.max_waiting_sequences:
            raise Overloaded(
                f"{self.num_requests} requests are running or waiting already",
                retry_after_s=RETRY_AFTER_S,
            )
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

    async def body_of(self, request: web.Request) -> bytes:
        """The request's body, whole. Raises RequestTimedOut, so that nobody holds a place idly."""
        limit_s = self.config.limits.body_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await request.read()
        except TimeoutError as error:
            raise RequestTimedOut(f"the body did not arrive within {limit_s} s") from error

    def ready_model(self) -> ServedModel:
        """Raises Unavailable until the model is loaded, and when the engine has ended."""
        if self.model is None or not self.client.is_ready:
            raise self.client.unavailable()
        return self.model

    @property
    def vocab_size(self) -> int:
        """Token ids are in [0, vocab_size); known once the engine is ready."""
        return self.client.ready.result().vocab_size

    def chat_template(self) -> ChatTemplate:
        """Raises BadRequest when the model has none."""
        template = self.ready_model().chat_template
        if template is None:
            raise BadRequest(
                f"model {self.config.model.name!r} has no chat template: use /v1/completions",
                param="messages",
            )
        return template


API = web.AppKey("api", ApiContext)
