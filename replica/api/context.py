"""What every handler of the API needs, in one place."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from prompt.chat_template import ChatTemplate
from protocol.errors import BadRequest
from replica.api.text import Detokenizer
from replica.config import ReplicaConfig
from replica.engine.client import EngineClient
from replica.metrics import ReplicaMetrics

_INLINE_CHARACTERS = 500
"""Longer texts are tokenised in a thread: some 150 tokens, below 1 ms, are not worth the trip."""


class Tokenizer(Protocol):
    """`replica.tokenizer.Tokenizer`, or a fake. Safe to use from several threads."""

    @property
    def eos_token_ids(self) -> Iterable[int]: ...

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...

    def detokenizer(self) -> Detokenizer: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The part of the model that the API process holds.

    Attributes:
        chat_template: None when the model has none: then it cannot chat.
    """

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) <= _INLINE_CHARACTERS:
            return self.tokenizer.encode(text, add_special_tokens)
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens)


@dataclass(slots=True, kw_only=True)
class ApiContext:
    """What lives as long as the server.

    Attributes:
        random_seed: A fresh 63-bit seed at each call.
        model: Set once the model is loaded.
    """

    config: ReplicaConfig
    client: EngineClient
    metrics: ReplicaMetrics
    random_seed: Callable[[], int]
    started_at_s: int
    model: ServedModel | None = field(default=None)

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
