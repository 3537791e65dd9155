"""How a broken stream is asked for again, elsewhere: the request's body, and what was said with it.

A replica that takes token ids goes on exactly (see protocol.resume). Others are asked to continue
the assistant's message, or the prompt with the text behind it: what they say next is theirs.

Sources: vLLM's and SGLang's `continue_final_message` and `add_generation_prompt`.
"""

from typing import Any

import msgspec

from protocol.resume import RESUME_KEY, Resume
from router.core.said import Said


class CannotResume(Exception):
    """The stream cannot go on; the message says why, after "it cannot be resumed: "."""


Fields = dict[str, msgspec.Raw]

_LIMITS = ("max_tokens", "max_completion_tokens", "min_tokens")
# With these a continuation would be read as a beginning, and end up as something else.
_NOT_BY_TEXT = (
    "echo", "functions", "grammar", "guided_choice", "guided_grammar", "guided_json",
    "guided_regex", "json_schema", "logprobs", "prompt_logprobs", "regex", "response_format",
    "return_token_ids", "structured_outputs", "suffix",
)  # fmt: skip
_NOTHING = (b"null", b"false", b"0", b'"none"', b"[]", b"{}")


def may_be_resumed(body: Fields) -> bool:
    """Whether a stream that this body asks for has one choice, so that it can be told apart."""
    return all(
        bytes(body[name]).strip() in (b"1", b"null", b"false")
        for name in ("n", "best_of", "use_beam_search")
        if name in body
    )


def fields_of(body: bytes) -> Fields:
    """Raises CannotResume: it is no JSON object."""
    try:
        return msgspec.json.decode(body, type=Fields)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CannotResume(f"the request cannot be read: {error}") from error


def check_can_go_on(said: Said, body: Fields) -> None:
    """Raises CannotResume: nobody could."""
    if said.obstacle is not None:
        raise CannotResume(said.obstacle)
    if not may_be_resumed(body):
        raise CannotResume("it has several choices")


def body_by_tokens(body: Fields, said: Said) -> bytes:
    """For a replica that goes on from token ids; all that were generated are known."""
    assert said.token_ids is not None
    resume = Resume(token_ids=said.token_ids, id=said.id, created=said.created)
    return msgspec.json.encode(body | {RESUME_KEY: _raw(resume)})


def body_by_text(body: Fields, said: Said, *, chat: bool) -> bytes:
    """For a replica that continues a message, or a prompt.

    Raises:
        CannotResume: there is more to the answer than its text.
    """
    for name in _NOT_BY_TEXT:
        if name in body and bytes(body[name]).strip() not in _NOTHING:
            raise CannotResume(f"with {name}, only token ids tell how to go on")
    if said.hidden is not None:
        raise CannotResume(said.hidden)
    if said.finish_reason is not None:
        raise CannotResume("only its usage is missing")
    if not said.text:
        return msgspec.json.encode(body)
    changed = dict(body)
    kept = said.kept_events(chat=chat)
    for name in _LIMITS:
        limit = _value(body, name)
        if isinstance(limit, int):
            changed[name] = _raw(max(0, limit - kept))
            if name != "min_tokens" and limit <= kept:
                raise CannotResume("all its tokens are said, only its end is missing")
    text = said.text.rstrip()  # templates cut it off: see ContinuedEvents
    if chat:
        changed["messages"] = _raw(_messages(body, text))
        changed["continue_final_message"] = _raw(True)
        changed["add_generation_prompt"] = _raw(False)
    else:
        changed["prompt"] = _raw(_prompt(body) + said.text)
    return msgspec.json.encode(changed)


def _messages(body: Fields, text: str) -> list[Any]:
    messages = _value(body, "messages")
    if not isinstance(messages, list):
        raise CannotResume("its messages cannot be read")
    if _value(body, "continue_final_message") is True:
        last = messages[-1] if messages else None
        if not isinstance(last, dict) or not isinstance(last.get("content"), str):
            raise CannotResume("the message it continues has no plain text")
        return [*messages[:-1], last | {"content": last["content"] + text}]
    return [*messages, {"role": "assistant", "content": text}]


def _prompt(body: Fields) -> str:
    prompt = _value(body, "prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise CannotResume("its prompt is no text")
    return prompt


def _value(body: Fields, name: str) -> Any:
    return msgspec.json.decode(body[name]) if name in body else None


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
