"""OpenAI's messages and tools as vLLM hands them to a chat template, so that prompts are equal.

Templates see plain JSON: `role` and `content`, and of the other fields those that vLLM knows.
Content is a string for templates that expect one (texts joined by line breaks), else a list of
parts. Tool calls and tool definitions have their keys in the order of vLLM's own types, since
templates print them as they are.

Source: vLLM `entrypoints/chat_utils.py` (`_parse_chat_message_content`, `_postprocess_messages`),
`entrypoints/openai/engine/protocol.py` (`FunctionDefinition`), openai-python's message types.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from prompt.errors import TemplateError

# Before the first part that is no text, where the caller wants to cut there.
MEDIA_MARK = "\x00media\x00"

_TEXTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_MEDIA = {
    "image_url": "image",
    "input_image": "image",
    "image_embeds": "image",
    "audio_url": "audio",
    "input_audio": "audio",
    "audio_embeds": "audio",
    "video_url": "video",
}


def template_messages(
    messages: Sequence[Mapping[str, Any]], *, wants_parts: bool, mark_media: bool = False
) -> list[Mapping[str, Any]]:
    """`messages` for a template. Those that need no change are the same objects.

    Args:
        wants_parts: The template loops over the parts of a message's content.
        mark_media: Put `MEDIA_MARK` before the first part that is no text instead of refusing it.

    Raises:
        TemplateError: a message's content is not understood.
    """
    prepared: list[Mapping[str, Any]] = []
    for message in messages:
        if not wants_parts and len(message) == 2 and type(message.get("content")) is str:
            prepared.append(message)  # role and content, as nearly always
        else:
            prepared.append(_message(message, wants_parts, mark_media))
    return prepared


def _message(message: Mapping[str, Any], wants_parts: bool, mark_media: bool) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    kept: dict[str, Any] = {"role": role}
    if content is None:
        content = []
    if wants_parts and role != "tool":
        kept["content"] = _parts(content, mark_media)
    else:
        kept["content"] = content if isinstance(content, str) else _text(content, mark_media)
    if role == "assistant":
        if message.get("tool_calls"):
            kept["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
        reasoning = message.get("reasoning")
        if reasoning is None:
            reasoning = message.get("reasoning_content")
        kept["reasoning"] = kept["reasoning_content"] = reasoning
    elif role == "tool":
        kept["tool_call_id"] = message.get("tool_call_id")
    elif role == "developer":
        kept["tools"] = message.get("tools")
    kept["name"] = message.get("name")
    return {name: value for name, value in kept.items() if value is not None}


def _text(content: Any, mark_media: bool) -> str:
    texts: list[str] = []
    has_media = False
    for part in _checked(content):
        kind, text = _read(part)
        if kind == "text":
            texts += [] if text is None else [text]
        else:
            has_media = True
    joined = "\n".join(texts)
    if has_media and not mark_media:
        raise TemplateError("only text parts are understood in a message's content")
    # vLLM puts what stands for media before the message's text.
    return MEDIA_MARK + joined if has_media else joined


def _parts(content: Any, mark_media: bool) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for part in [content] if isinstance(content, str) else _checked(content):
        kind, text = _read(part)
        if kind != "text":
            if not mark_media:
                raise TemplateError("only text parts are understood in a message's content")
            parts += [{"type": "text", "text": MEDIA_MARK}, {"type": kind}]
        elif text is not None:
            parts.append({"type": "text", "text": text})
    return parts


def _checked(content: Any) -> Sequence[Any]:
    if not isinstance(content, list):
        raise TemplateError("a message's content must be text or a list of parts")
    return content


def _read(part: Any) -> tuple[str, str | None]:
    """The kind of a part, and its text if it is "text"; vLLM skips texts that are null."""
    if isinstance(part, str):
        return "text", part
    if isinstance(part, Mapping):
        kind = part.get("type")
        if kind in _TEXTS:
            text = part.get(_TEXTS[kind])
            if text is None or isinstance(text, str):
                return "text", text
        elif kind in _MEDIA:
            return _MEDIA[kind], None
    raise TemplateError("only text parts are understood in a message's content")


def _tool_call(call: Any) -> Any:
    """OpenAI sends a tool call's arguments as a JSON string; templates expect the object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise TemplateError("a tool call has no function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {}
    elif not isinstance(arguments, dict | list):
        arguments = {}
    named = {"arguments": arguments, "name": function.get("name")}
    outer = {"id": call.get("id"), "function": {**named, **_rest(function, named)}}
    outer["type"] = call.get("type", "function")
    return {**outer, **_rest(call, outer)}


def template_variables(
    settings: Mapping[str, Any] | None, documents: Any, reasoning_effort: Any
) -> Mapping[str, Any] | None:
    """What a template is given beside messages and tools.

    Args:
        settings: A request's chat_template_kwargs.
        documents, reasoning_effort: Its fields of these names; None if it has none.

    Source: vLLM `entrypoints/openai/chat_completion/protocol.py` (`build_chat_params`).
    """
    if documents is None and reasoning_effort is None:
        return settings
    variables = dict(settings or {})
    if documents is not None:
        variables["documents"] = documents
    if reasoning_effort is not None:
        variables["reasoning_effort"] = reasoning_effort
        variables.setdefault("enable_thinking", reasoning_effort != "none")
    return variables


def template_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Mapping[str, Any]] | None:
    """Tool definitions for a template; None when there are none."""
    return [_tool(tool) for tool in tools] if tools else None


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return tool
    named = {name: function.get(name) for name in ("name", "description", "parameters")}
    return {"type": "function", "function": {**named, **_rest(function, named)}}


def _rest(whole: Mapping[str, Any], taken: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in whole.items() if name not in taken}
