"""POST /v1/chat/completions and /v1/completions, streamed or whole.

    body → struct → Wish → prompt tokens → sequence in the engine → pieces of text → answer

The status line of a stream is sent with its first text, not before: until then a refusal keeps its
status, and a router may still send the request elsewhere.

An answer that broke off elsewhere goes on (protocol.resume): what was said is replayed through the
state that text goes through, and follows the prompt in the engine.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import msgspec
from aiohttp import web

from prompt.errors import TemplateError
from prompt.messages import template_variables
from protocol import sse
from protocol.errors import BadRequest, ProtocolError, encode_error
from protocol.openai import ChatRequest, CompletionRequest, SamplingFields, Usage, usage
from protocol.resume import RESUMABLE_FIELD, tokens_line
from replica.api import answers, validation
from replica.api.context import API, ApiContext, ServedModel
from replica.api.text import AnswerText, Piece, last_piece, pieces
from replica.api.validation import Wish
from replica.metrics import RequestTimes

chat_decoder = msgspec.json.Decoder(ChatRequest)
completion_decoder = msgspec.json.Decoder(CompletionRequest)
_encoder = msgspec.json.Encoder()

_INLINE_MESSAGES_BYTES = 2000
"""Larger chats are rendered in a thread."""
_INLINE_TOKENS = 250
"""More tokens are replayed in a thread: they take 2 to 4 µs each."""
_RESUMABLE = RESUMABLE_FIELD.decode()


async def chat_completions(request: web.Request) -> web.StreamResponse:
    api, arrived_s = request.app[API], asyncio.get_running_loop().time()
    model = api.ready_model()
    body = await api.body_of(request)
    chat = validation.decode_body(body, chat_decoder)
    validation.check_model(chat.model, api.config.model)
    wish = validation.wish_of_chat(chat, api.random_seed, api.vocab_size, model.sampling)
    with api.admitted():
        prompt = await prompt_of_chat(chat, api, model, len(body))
        kind = answers.Chat(*_id_and_time(chat, "chatcmpl"), api.config.model.name)
        return await _answer(request, chat, wish, prompt, kind, arrived_s, "messages")


async def completions(request: web.Request) -> web.StreamResponse:
    api, arrived_s = request.app[API], asyncio.get_running_loop().time()
    model = api.ready_model()
    body = validation.decode_body(await api.body_of(request), completion_decoder)
    validation.check_model(body.model, api.config.model)
    wish = validation.wish_of_completion(body, api.random_seed, api.vocab_size, model.sampling)
    with api.admitted():
        prompt = await prompt_of_completion(body, api, model)
        kind = answers.Completion(*_id_and_time(body, "cmpl"), api.config.model.name)
        return await _answer(request, body, wish, prompt, kind, arrived_s, "prompt")


def _id_and_time(asked: SamplingFields, prefix: str) -> tuple[str, int]:
    resume = asked.warmroute_resume
    if resume is not None:
        return resume.id, resume.created
    return f"{prefix}-{uuid.uuid4().hex}", int(time.time())


async def prompt_of_chat(
    chat: ChatRequest, api: ApiContext, model: ServedModel, body_bytes: int
) -> list[int]:
    """Raises BadRequest, of which ContextTooLong is one."""
    text = await _render(api, chat, body_bytes)
    longest_token = model.tokenizer.longest_token_characters
    validation.check_text_length(text, longest_token, api.config.model.max_model_len, "messages")
    return await model.encode(text, add_special_tokens=bool(chat.add_special_tokens))


async def _render(api: ApiContext, chat: ChatRequest, body_bytes: int) -> str:
    template = api.chat_template()
    messages = validation.as_template_messages(chat.messages)

    def render() -> str:
        return template.render(
            messages,
            tools=chat.tools,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            variables=template_variables(
                chat.chat_template_kwargs, chat.documents, chat.reasoning_effort
            ),
        )

    reserved = {"messages", "tools", "add_generation_prompt", "continue_final_message"}
    for name in chat.chat_template_kwargs or {}:
        if name in reserved:
            place = f"chat_template_kwargs.{name}"
            raise BadRequest(f"{place}: {name} is a field of its own", param=place)
    try:
        if body_bytes <= _INLINE_MESSAGES_BYTES:
            return render()
        return await asyncio.to_thread(render)
    except TemplateError as error:
        raise BadRequest(str(error), param="messages") from error


async def prompt_of_completion(
    body: CompletionRequest, api: ApiContext, model: ServedModel
) -> list[int]:
    """Raises BadRequest, of which ContextTooLong is one."""
    prompt = validation.one_prompt(body.prompt)
    if isinstance(prompt, str):
        longest_token = model.tokenizer.longest_token_characters
        validation.check_text_length(
            prompt, longest_token, api.config.model.max_model_len, "prompt"
        )
        return await model.encode(prompt, add_special_tokens=body.add_special_tokens is not False)
    validation.check_token_ids(prompt, api.vocab_size, "prompt")
    return prompt


async def _answer(
    request: web.Request,
    asked: SamplingFields,
    wish: Wish,
    prompt: list[int],
    kind: answers.Kind,
    arrived_s: float,
    prompt_field: str,
) -> web.StreamResponse:
    api = request.app[API]
    model = api.ready_model()
    times = RequestTimes(api.metrics, arrived_s)
    context = api.config.model.max_model_len
    max_tokens = validation.tokens_to_generate(len(prompt), wish, context, prompt_field)
    eos = () if wish.ignore_eos else model.tokenizer.eos_token_ids
    stop_token_ids = [*eos, *wish.stop_token_ids]
    answer = AnswerText(model.tokenizer.detokenizer(), wish.stops)
    said: list[int] = []
    untold = ""
    if asked.warmroute_resume is not None:
        said = asked.warmroute_resume.token_ids
        validation.check_said(said, context)
        untold = await _take_up(answer, said, stop_token_ids, max_tokens)
    outcome = "abort"
    try:
        if answer.finish is not None:
            text = last_piece(answer, untold)
            response, outcome = await _tell(request, asked, kind, text, len(prompt))
            return response
        with api.client.generate(
            prompt_token_ids=[*prompt, *said] if said else prompt,
            max_tokens=max_tokens - len(said),
            stop_token_ids=stop_token_ids,
            sampling=wish.sampling,
            cache_salt=wish.cache_salt,
        ) as generation:
            text = pieces(generation, answer, times)
            response, outcome = await _tell(request, asked, kind, text, len(prompt))
        return response
    except ProtocolError:
        outcome = "error"
        raise
    finally:
        times.ended(outcome, len(prompt))


async def _take_up(
    answer: AnswerText, said: list[int], stop_token_ids: list[int], max_tokens: int
) -> str:
    """Has `answer` go on after `said`; returns text not told yet, only if it ends with that.

    Raises:
        BadRequest: the answer ends before the last token of `said`.
    """
    # More than there is room for: where it was said there was more room, so it had not ended.
    fits = len(said) <= max_tokens
    given = (said, frozenset(stop_token_ids), max_tokens if fits else None)
    if len(said) <= _INLINE_TOKENS:
        taken = answer.replay(*given)
    else:
        taken = await asyncio.to_thread(answer.replay, *given)
    if taken < len(said):
        place = "warmroute_resume.token_ids"
        raise BadRequest(f"{place}: the answer ends with token {taken} of {len(said)}", param=place)
    return "" if fits or answer.finish is not None else answer.end("length")


async def _tell(
    request: web.Request,
    asked: SamplingFields,
    kind: answers.Kind,
    text: AsyncGenerator[Piece, None],
    prompt_tokens: int,
) -> tuple[web.StreamResponse, str]:
    """The answer, streamed or whole, and how it ended."""
    async with aclosing(text):
        if asked.stream:
            return await _stream(request, asked, kind, text, prompt_tokens)
        return await _whole(kind, text, prompt_tokens)


async def _whole(
    kind: answers.Kind, text: AsyncIterator[Piece], prompt_tokens: int
) -> tuple[web.StreamResponse, str]:
    parts = []
    async for piece in text:
        parts.append(piece.text)
        if piece.finish is not None:
            body = kind.whole("".join(parts), piece.finish, _usage(prompt_tokens, piece))
            response = web.Response(body=_encoder.encode(body), content_type="application/json")
            return response, piece.finish
    raise AssertionError("an answer has a last piece")


async def _stream(
    request: web.Request,
    asked: SamplingFields,
    kind: answers.Kind,
    text: AsyncIterator[Piece],
    prompt_tokens: int,
) -> tuple[web.StreamResponse, str]:
    options = asked.stream_options
    with_usage = options is not None and options.include_usage
    in_every_chunk = options is not None and options.continuous_usage_stats
    tells_tokens = request.headers.get(_RESUMABLE) == "1"
    piece = await anext(text)  # an error here still has its status
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    opening = kind.opening() if asked.warmroute_resume is None else None
    ahead = b"" if opening is None else sse.frame(_encoder.encode(opening))
    try:
        while True:
            count = _usage(prompt_tokens, piece)
            chunk = kind.chunk(piece.text, piece.finish, count if in_every_chunk else None)
            frames = sse.frame(_encoder.encode(chunk))
            if tells_tokens:
                frames = tokens_line(piece.token_ids) + frames
            frames = ahead + frames
            if piece.finish is not None:
                break
            await response.write(frames)
            ahead = b""
            piece = await anext(text)
    except ProtocolError as error:
        # Too late for a status: the stream ends with an error event and no [DONE].
        body = encode_error(error.message, type=error.type, param=error.param, code=error.code)
        await response.write(sse.frame(body))
        await response.write_eof()
        return response, "error"
    if with_usage:
        frames += sse.frame(_encoder.encode(kind.usage_chunk(count)))
    await response.write(frames + sse.DONE)
    await response.write_eof()
    return response, piece.finish


def _usage(prompt_tokens: int, piece: Piece) -> Usage:
    # What was said before counts as prompt in the engine, and may be cached there.
    cached_tokens = min(piece.cached_tokens, prompt_tokens)
    return usage(prompt_tokens, piece.completion_tokens, cached_tokens)
