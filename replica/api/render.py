"""What a completion request would ask of the engine, told and not asked: its tokens, its sampling.

Routers that match prompts by tokens ask this first (vLLM's paths: `.../render`).
"""

import asyncio
import uuid
from typing import Any

import msgspec
from aiohttp import web

from replica.api import validation
from replica.api.completions import (
    chat_decoder,
    completion_decoder,
    prompt_of_chat,
    prompt_of_completion,
)
from replica.api.context import API
from replica.api.validation import Wish

_encoder = msgspec.json.Encoder()


async def render_chat(request: web.Request) -> web.Response:
    api = request.app[API]
    model = api.ready_model()
    body = await api.body_of(request)
    chat = validation.decode_body(body, chat_decoder)
    validation.check_model(chat.model, api.config.model)
    wish = validation.wish_of_chat(chat, api.random_seed, api.vocab_size, model.sampling)
    with api.admitted():
        prompt = await prompt_of_chat(chat, api, model, len(body))
    return await _json(_rendered("chatcmpl", prompt, wish, api.config.model.max_model_len))


async def render_completion(request: web.Request) -> web.Response:
    """A list, as prompts may be several where they are served; here it is one."""
    api = request.app[API]
    model = api.ready_model()
    body = validation.decode_body(await api.body_of(request), completion_decoder)
    validation.check_model(body.model, api.config.model)
    wish = validation.wish_of_completion(body, api.random_seed, api.vocab_size, model.sampling)
    with api.admitted():
        prompt = await prompt_of_completion(body, api, model)
    return await _json([_rendered("cmpl", prompt, wish, api.config.model.max_model_len)])


def _rendered(prefix: str, prompt: list[int], wish: Wish, context: int) -> dict[str, Any]:
    """Raises ProtocolError when the prompt has no token, or leaves no room for one."""
    max_tokens = validation.tokens_to_generate(len(prompt), wish, context, "prompt")
    sampling = wish.sampling
    return {
        "request_id": f"{prefix}-{uuid.uuid4().hex}",
        "token_ids": prompt,
        "sampling_params": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or 0,  # vLLM's 0 is all of them
            "min_p": sampling.min_p,
            "seed": sampling.seed,
            "max_tokens": max_tokens,
            "stop": wish.stops,
            "stop_token_ids": wish.stop_token_ids,
            "ignore_eos": wish.ignore_eos,
        },
    }


async def _json(body: Any) -> web.Response:
    # In a thread: a prompt may have 100,000 tokens.
    encoded = await asyncio.to_thread(_encoder.encode, body)
    return web.Response(body=encoded, content_type="application/json")
