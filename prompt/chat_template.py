"""A model's own chat template: messages in, prompt text out, as Hugging Face renders it.

Templates come with a model's files, so they run in Jinja's sandbox.

Source: transformers `utils/chat_template_utils.py` (environment, `raise_exception`,
`strftime_now`, `tojson`, the `generation` tag); vLLM `entrypoints/chat_utils.py` (multi-part
content flattened with line breaks for templates that expect a string, tool-call arguments decoded).
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from prompt.errors import ModelFileError, TemplateError

# Marks where the last message ends, to cut there; no template or user writes it.
_END_OF_FINAL_MESSAGE = "\x00end-of-final-message\x00"

# Templates that loop over a message's content want its parts; the others want a string.
_LOOPS_OVER_CONTENT = re.compile(
    r"""in\s+message(\.content|\[\s*['"]content['"]\s*\])(?!\s*(\.|\[))[^%]*%}"""
)


class ChatTemplate:
    """Renders conversations. Immutable; safe to share."""

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        """
        Raises:
            ModelFileError: `source` is not a Jinja template.
        """
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._wants_parts = bool(_LOOPS_OVER_CONTENT.search(source))
        try:
            self._template = _environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelFileError(f"chat template, line {error.lineno}: {error.message}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for `messages`.

        Args:
            messages: OpenAI chat messages as decoded JSON.
            tools: OpenAI tool definitions, for templates that render them.
            add_generation_prompt: End with the header of an assistant message.
            continue_final_message: End inside the last message, so that the model goes on with it;
                excludes `add_generation_prompt`.
            variables: Further variables of the template (`chat_template_kwargs`); they cannot
                replace the ones above.

        Raises:
            TemplateError: the template or its sandbox refuses this input.
        """
        if continue_final_message and add_generation_prompt:
            raise TemplateError(
                "continue_final_message and add_generation_prompt exclude each other"
            )
        prepared = [self._prepare(message) for message in messages]
        if continue_final_message:
            _mark_end(prepared)
        try:
            text = self._template.render(
                **{
                    **self._tokens,
                    "documents": None,
                    **(variables or {}),
                    "messages": prepared,
                    "tools": list(tools) if tools else None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except (
            *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
            *(ArithmeticError, RecursionError),
        ) as error:
            # Templates fail on input they did not foresee with whatever Python raises in them.
            raise TemplateError(f"the chat template refuses these messages: {error}") from error
        if continue_final_message:
            end = text.rfind(_END_OF_FINAL_MESSAGE)
            if end < 0:
                raise TemplateError("the chat template leaves out the final message")
            text = text[:end]
        return text

    def _prepare(self, message: Mapping[str, Any]) -> dict[str, Any]:
        prepared = dict(message)
        content = prepared.get("content")
        if isinstance(content, list) and not self._wants_parts:
            prepared["content"] = _flatten(content)
        elif isinstance(content, str) and self._wants_parts:
            prepared["content"] = [{"type": "text", "text": content}]
        elif content is None:
            prepared["content"] = [] if self._wants_parts else ""
        if prepared.get("tool_calls"):
            prepared["tool_calls"] = [_decode_arguments(call) for call in prepared["tool_calls"]]
        return prepared


def _flatten(parts: Sequence[Any]) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise TemplateError("only text parts are understood in a message's content")
        texts.append(part["text"])
    return "\n".join(texts)


def _decode_arguments(call: Any) -> Any:
    """OpenAI sends a tool call's arguments as a JSON string; templates expect the object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError as error:
        raise TemplateError(f"tool call arguments are not JSON: {error}") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _mark_end(messages: list[dict[str, Any]]) -> None:
    if not messages:
        raise TemplateError("continue_final_message needs a message to continue")
    content = messages[-1]["content"]
    if isinstance(content, str):
        messages[-1]["content"] = content + _END_OF_FINAL_MESSAGE
    elif content and isinstance(content[-1], Mapping) and isinstance(content[-1].get("text"), str):
        last = {**content[-1], "text": content[-1]["text"] + _END_OF_FINAL_MESSAGE}
        messages[-1]["content"] = [*content[:-1], last]
    else:
        raise TemplateError("continue_final_message needs a final message that ends in text")


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model was trained to say: no effect."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's interface)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes HTML characters, which models were not trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


_environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_GenerationTag, jinja2.ext.loopcontrols],
)
_environment.filters["tojson"] = _tojson
_environment.globals["raise_exception"] = _raise_exception
_environment.globals["strftime_now"] = _strftime_now
