"""From a request body to what the engine is asked: every field honoured, or refused by name."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from protocol.errors import BadRequest, ContextTooLong, ModelNotFound
from protocol.openai import ChatRequest, CompletionRequest, SamplingFields
from protocol.resume import Resume
from replica.config import Model
from replica.core.plan import SamplingParams
from replica.sampling_defaults import SamplingDefaults

Body = TypeVar("Body")

_COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for plain completions; chats default to all the context holds."""

_MAX_STOPS = 4
_MAX_STOP_CHARACTERS = 1024
_MAX_STOP_TOKEN_IDS = 128
_MAX_ID_CHARACTERS = 256
"""Of an answer that goes on; its events all repeat it."""
_SEED_MASK = 2**64 - 1
"""Signed and unsigned seeds name the same 64 bits."""

_REFUSED = (
    *("bad_words", "allowed_token_ids", "prompt_logprobs", "include_stop_str_in_output"),
    *("truncate_prompt_tokens", "use_beam_search", "structured_outputs", "guided_json"),
    *("guided_regex", "guided_choice", "guided_grammar"),
)
"""vLLM's fields that change the answer and are not here."""

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request asks of the engine, apart from its prompt.

    Attributes:
        max_tokens: None: as many as the context holds.
        stops: Strings that end the answer; not part of it.
    """

    sampling: SamplingParams
    max_tokens: int | None
    stops: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    cache_salt: str | None


def decode_body(body: bytes, decoder: msgspec.json.Decoder[Body]) -> Body:
    """`body` as the decoder's struct.

    Raises:
        BadRequest: it is not JSON, or a field is missing or of the wrong type; names the field.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error


def check_model(asked: str, model: Model) -> None:
    """Raises ModelNotFound unless `asked` is this model, or empty."""
    if asked and asked != model.name and asked not in model.aliases:
        raise ModelNotFound(
            f"there is no model {asked!r} here; this replica serves {model.name!r}", param="model"
        )


def wish_of_chat(
    request: ChatRequest,
    random_seed: Callable[[], int],
    vocabulary: int,
    defaults: SamplingDefaults,
) -> Wish:
    """Raises BadRequest naming the first field that cannot be honoured."""
    _refuse(request.logprobs, (None, False), "logprobs")
    _refuse(request.top_logprobs, (None, 0), "top_logprobs")
    _refuse(request.functions, (None, []), "functions")
    _refuse(request.tool_choice, (None, "none", "auto"), "tool_choice")
    if not request.messages:
        raise BadRequest("messages must not be empty", param="messages")
    for index, message in enumerate(request.messages):
        parts = message.content if isinstance(message.content, list) else []
        for number, part in enumerate(parts):
            if part.type != "text" or part.text is None:
                place = f"messages[{index}].content[{number}].type"
                raise BadRequest(
                    f"{place}: only parts of type 'text' are understood, not {part.type!r}",
                    param=place,
                )
    if request.continue_final_message and request.add_generation_prompt:
        raise BadRequest(
            "continue_final_message needs add_generation_prompt to be false",
            param="continue_final_message",
        )
    max_tokens, name = request.max_completion_tokens, "max_completion_tokens"
    if max_tokens is None:
        max_tokens, name = request.max_tokens, "max_tokens"
    if max_tokens is not None:
        _check_range(max_tokens, name, lowest=1)
    return _wish(request, max_tokens, random_seed, vocabulary, defaults)


def wish_of_completion(
    request: CompletionRequest,
    random_seed: Callable[[], int],
    vocabulary: int,
    defaults: SamplingDefaults,
) -> Wish:
    """Raises BadRequest naming the first field that cannot be honoured."""
    _refuse(request.logprobs, (None,), "logprobs")
    _refuse(request.echo, (None, False), "echo")
    _refuse(request.suffix, (None, ""), "suffix")
    max_tokens = _COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    _check_range(max_tokens, "max_tokens", lowest=1)
    return _wish(request, max_tokens, random_seed, vocabulary, defaults)


def one_prompt(prompt: str | list[int | str | list[int]]) -> str | list[int]:
    """The one prompt of a completion request: text or token ids.

    Raises:
        BadRequest: there is none, or more than one, or kinds are mixed.
    """
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        raise BadRequest("the prompt must not be empty", param="prompt")
    token_ids = [item for item in prompt if isinstance(item, int)]
    if len(token_ids) == len(prompt):
        return token_ids
    if len(prompt) > 1:
        what = "token ids and prompts are mixed" if token_ids else f"this has {len(prompt)}"
        raise BadRequest(f"one prompt a request, please: {what}", param="prompt")
    (only,) = prompt
    assert not isinstance(only, int)
    return only


def check_token_ids(token_ids: list[int], vocabulary: int, param: str) -> None:
    """Raises BadRequest when an id is none of the model's."""
    if not token_ids:
        return
    for token in (min(token_ids), max(token_ids)):
        if not 0 <= token < vocabulary:
            raise BadRequest(
                f"{param}: token id {token} is not in the vocabulary of {vocabulary} tokens",
                param=param,
            )


def check_text_length(text: str, longest_token: int, context: int, param: str) -> None:
    """Raises ContextTooLong for a text that cannot fit, so that it need not be tokenised.

    Args:
        longest_token: Characters of the longest token.
        context: Tokens.
    """
    if len(text) > longest_token * context:
        raise ContextTooLong(
            f"this model's context holds {context} tokens, prompt and answer together; "
            f"the prompt has {len(text)} characters, at least {len(text) // longest_token} tokens",
            param=param,
        )


def tokens_to_generate(prompt_tokens: int, wish: Wish, context: int, param: str) -> int:
    """How many tokens to generate: what was asked, clipped to what the context holds.

    Raises:
        BadRequest: the prompt is empty.
        ContextTooLong: the prompt leaves no room for a token; tells both lengths.
    """
    if prompt_tokens == 0:
        raise BadRequest("the prompt must have at least one token", param=param)
    if prompt_tokens >= context:
        raise ContextTooLong(
            f"this model's context holds {context} tokens, prompt and answer together; "
            f"the prompt has {prompt_tokens}",
            param=param,
        )
    room = context - prompt_tokens
    return room if wish.max_tokens is None else min(wish.max_tokens, room)


def check_said(said: list[int], context: int) -> None:
    """Raises ContextTooLong when what an answer said can be none of this model's.

    Args:
        context: Tokens.
    """
    if len(said) > context:
        place = "warmroute_resume.token_ids"
        raise ContextTooLong(
            f"{place}: this model's context holds {context} tokens, prompt and answer together; "
            f"these are {len(said)}",
            param=place,
        )


def _wish(
    request: SamplingFields,
    max_tokens: int | None,
    random_seed: Callable[[], int],
    vocabulary: int,
    defaults: SamplingDefaults,
) -> Wish:
    _refuse(request.n, (None, 1), "n")
    _refuse(request.best_of, (None, 1), "best_of")
    _refuse(request.frequency_penalty, (None, 0), "frequency_penalty")
    _refuse(request.presence_penalty, (None, 0), "presence_penalty")
    _refuse(request.repetition_penalty, (None, 1), "repetition_penalty")
    _refuse(request.logit_bias, (None, {}), "logit_bias")
    _refuse(request.response_format, (None, {"type": "text"}), "response_format")
    _refuse(request.min_tokens, (None, 0), "min_tokens")
    _refuse(request.skip_special_tokens, (None, True), "skip_special_tokens")
    for name in _REFUSED:
        _refuse(getattr(request, name), (None, False, []), name)
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options needs stream to be true", param="stream_options")
    if request.warmroute_resume is not None:
        if not request.stream:
            raise BadRequest("warmroute_resume needs stream to be true", param="warmroute_resume")
        _check_resume(request.warmroute_resume, vocabulary)
    if request.cache_salt == "":
        raise BadRequest("cache_salt must not be empty", param="cache_salt")
    stop_token_ids = request.stop_token_ids or []
    if len(stop_token_ids) > _MAX_STOP_TOKEN_IDS:
        raise BadRequest(f"at most {_MAX_STOP_TOKEN_IDS} stop tokens", param="stop_token_ids")
    check_token_ids(stop_token_ids, vocabulary, "stop_token_ids")
    return Wish(
        sampling=_sampling(request, random_seed, defaults),
        max_tokens=max_tokens,
        stops=_stops(request.stop),
        stop_token_ids=tuple(stop_token_ids),
        ignore_eos=request.ignore_eos,
        cache_salt=request.cache_salt,
    )


def _sampling(
    request: SamplingFields, random_seed: Callable[[], int], defaults: SamplingDefaults
) -> SamplingParams:
    temperature = defaults.temperature if request.temperature is None else request.temperature
    top_p = defaults.top_p if request.top_p is None else request.top_p
    min_p = defaults.min_p if request.min_p is None else request.min_p
    if request.temperature is not None:
        _check_range(temperature, "temperature", lowest=0, highest=2)
    if not 0 < top_p <= 1:
        raise BadRequest(f"top_p must be above 0 and at most 1, not {top_p}", param="top_p")
    if not 0 <= min_p < 1:
        raise BadRequest(f"min_p must be at least 0 and below 1, not {min_p}", param="min_p")
    top_k = defaults.top_k
    if request.top_k is not None:
        top_k = request.top_k
        _check_range(top_k, "top_k", lowest=-1, highest=2**31 - 1)
        top_k = top_k if top_k > 0 else None  # vLLM's clients send 0 or -1 for "all"
    if request.seed is not None:
        _check_range(request.seed, "seed", lowest=-(2**63), highest=2**64 - 1)
    seed = random_seed() if request.seed is None else request.seed
    return SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed & _SEED_MASK
    )


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > _MAX_STOPS:
        raise BadRequest(f"at most {_MAX_STOPS} stop strings, not {len(stops)}", param="stop")
    for one in stops:
        if not 0 < len(one) <= _MAX_STOP_CHARACTERS:
            raise BadRequest(
                f"a stop string has 1 to {_MAX_STOP_CHARACTERS} characters, not {len(one)}",
                param="stop",
            )
    return tuple(stops)


def _check_resume(resume: Resume, vocabulary: int) -> None:
    check_token_ids(resume.token_ids, vocabulary, "warmroute_resume.token_ids")
    if not 0 < len(resume.id) <= _MAX_ID_CHARACTERS:
        raise BadRequest(
            f"warmroute_resume.id has 1 to {_MAX_ID_CHARACTERS} characters, not {len(resume.id)}",
            param="warmroute_resume.id",
        )
    _check_range(resume.created, "warmroute_resume.created", lowest=0, highest=2**63 - 1)


def _check_range(value: float, name: str, *, lowest: float, highest: float | None = None) -> None:
    if value < lowest or (highest is not None and value > highest):
        bounds = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise BadRequest(f"{name} must be {bounds}, not {value}", param=name)


def _refuse(value: Any, neutral: tuple[Any, ...], name: str) -> None:
    """Fields we know and cannot honour: fine while they ask for nothing."""
    if value not in neutral:
        raise BadRequest(f"{name} is not supported by this server: leave it out", param=name)


def _wrong_field(text: str) -> BadRequest:
    """msgspec's ``Expected `int`, got `str` - at `$.max_tokens` `` with the path as `param`."""
    match = _PLACE.match(text)
    assert match is not None
    what, path = match["what"], match["path"] or ""
    missing = _MISSING.search(what)
    if missing is not None:
        path = f"{path}.{missing['field']}" if path else missing["field"]
        what = "a required field is missing"
    what = what.replace("`", "'").replace("| null", "")
    return BadRequest(f"{path}: {what}" if path else what, param=path or None)


def as_template_messages(request_messages: list[Any]) -> list[Mapping[str, Any]]:
    """Messages as plain decoded JSON, the way chat templates expect them."""
    messages: list[Mapping[str, Any]] = msgspec.to_builtins(request_messages)
    return messages
