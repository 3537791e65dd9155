"""Everything but completions: models, tokens, health, load, metrics, the KV cache."""

import asyncio
from importlib import metadata
from typing import Any

import msgspec
from aiohttp import web

from prompt.errors import TemplateError
from protocol.errors import BadRequest
from protocol.kv_events import encode_snapshot
from protocol.openai import (
    DetokenizeRequest,
    DetokenizeResponse,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
)
from replica.api import validation
from replica.api.context import API

_tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)
_encoder = msgspec.json.Encoder()


async def models(request: web.Request) -> web.Response:
    api = request.app[API]
    model = api.config.model
    cards = [
        ModelCard(
            id=name,
            created=api.started_at_s,
            root=model.name,
            parent=None if name == model.name else model.name,
            max_model_len=model.max_model_len,
        )
        for name in (model.name, *model.aliases)
    ]
    return _json(ModelList(data=cards))


async def tokenize(request: web.Request) -> web.Response:
    api = request.app[API]
    model = api.ready_model()
    body = validation.decode_body(await api.body_of(request), _tokenize_decoder)
    validation.check_model(body.model, api.config.model)
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("give one of prompt and messages", param="prompt")
    with api.admitted():
        if body.prompt is not None:
            tokens = await model.encode(body.prompt, add_special_tokens=body.add_special_tokens)
        else:
            messages = validation.as_template_messages(body.messages or [])
            try:
                # In a thread: how long it takes is the client's choice.
                text = await asyncio.to_thread(
                    api.chat_template().render,
                    messages,
                    add_generation_prompt=body.add_generation_prompt,
                )
            except TemplateError as error:
                raise BadRequest(str(error), param="messages") from error
            tokens = await model.encode(text, add_special_tokens=False)
    return _json(
        TokenizeResponse(
            tokens=tokens, count=len(tokens), max_model_len=api.config.model.max_model_len
        )
    )


async def detokenize(request: web.Request) -> web.Response:
    api = request.app[API]
    model = api.ready_model()
    body = validation.decode_body(await api.body_of(request), _detokenize_decoder)
    validation.check_model(body.model, api.config.model)
    validation.check_token_ids(body.tokens, api.vocab_size, "tokens")
    with api.admitted():
        return _json(DetokenizeResponse(prompt=await model.decode(body.tokens)))


async def health(request: web.Request) -> web.Response:
    """Alive: 200 from the start, also while the model loads, until the engine ends."""
    client = request.app[API].client
    if client.ended_because is not None:
        raise client.unavailable()
    return _json({"status": "alive"})


async def ready(request: web.Request) -> web.Response:
    """200 once requests are welcome; before that 503 with how much of the model is loaded."""
    api = request.app[API]
    if api.model is not None and api.client.is_ready:
        return _json({"status": "ready"})
    error = api.client.unavailable()
    body = msgspec.json.decode(error.body())
    body["status"] = "loading" if api.client.ended_because is None else "ended"
    body["progress"] = round(api.client.progress, 3)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(int(error.retry_after_s))}
    return _json(body, status=503, headers=headers)


async def version(request: web.Request) -> web.Response:
    return _json({"version": metadata.version("warmroute")})


async def load(request: web.Request) -> web.Response:
    """The load now. `server_load` is vLLM's name for the requests being answered."""
    api = request.app[API]
    stats = api.client.stats
    return _json(
        {
            "server_load": api.num_requests,
            "running": stats.running,
            "waiting": stats.waiting,
            "held_blocks": stats.held_blocks,
            "cached_blocks": stats.cached_blocks,
            "total_blocks": stats.total_blocks,
            "block_size": api.config.engine.block_size,
        }
    )


async def metrics(request: web.Request) -> web.Response:
    return web.Response(
        body=request.app[API].metrics.exposition(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def kv_cache_snapshot(request: web.Request) -> web.Response:
    """All blocks cached after event batch `seq`, as msgpack."""
    api = request.app[API]
    snapshot = await api.client.take_snapshot(api.config.limits.engine_timeout_s)
    return web.Response(body=encode_snapshot(snapshot), content_type="application/msgpack")


async def reset_prefix_cache(request: web.Request) -> web.Response:
    api = request.app[API]
    await api.client.reset_prefix_cache(api.config.limits.engine_timeout_s)
    return _json({"status": "reset"})


def _json(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=_encoder.encode(body),
        status=status,
        headers=headers,
        content_type="application/json",
    )
