"""A model's own chat template: messages in, prompt text out, as Hugging Face renders it.

Templates come with a model's files, so they run in Jinja's sandbox.

Source: transformers `utils/chat_template_utils.py` (environment, `raise_exception`,
`strftime_now`, `tojson`, the `generation` tag, where a continued message ends).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime

from prompt.content_format import wants_parts
from prompt.errors import ModelFileError, TemplateError
from prompt.messages import MEDIA_MARK, template_messages, template_tools
from prompt.sandbox import ChatSandbox

# Marks where the last message ends, to cut there; no template or user writes it. A template that
# trims messages also trims the space at its end.
_END_OF_FINAL_MESSAGE = "\x00end-of-final-message\x00 "


class ChatTemplate:
    """Renders conversations. Immutable; safe to share."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """
        Args:
            special_tokens: The model's, by the names templates know: `bos_token` and so on.

        Raises:
            ModelFileError: `source` is not a Jinja template.
        """
        self.source = source
        self._tokens = dict(special_tokens or {})
        try:
            self._wants_parts = wants_parts(_environment.parse(source))
            self._template = _environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelFileError(f"chat template, line {error.lineno}: {error.message}") from error
        except (SyntaxError, RecursionError) as error:  # Python's, of the code Jinja makes of it
            raise ModelFileError(f"chat template: cannot be compiled: {error}") from error
        # Jinja has them in a ChainMap, whose copy at each rendering takes longer than a message.
        self._globals = dict(self._template.globals)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        until_media: bool = False,
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
            until_media: End where the first image, audio or video comes, instead of refusing it.

        Raises:
            TemplateError: the template or its sandbox refuses this input.
        """
        if continue_final_message and add_generation_prompt:
            raise TemplateError(
                "continue_final_message and add_generation_prompt exclude each other"
            )
        try:
            prepared = template_messages(
                messages, wants_parts=self._wants_parts, mark_media=until_media
            )
            if continue_final_message:
                prepared[-1:] = [_with_end_mark(prepared)]
            context = jinja2.runtime.new_context(
                _environment,
                self._template.name,
                self._template.blocks,
                {
                    **self._tokens,
                    "documents": None,
                    **(variables or {}),
                    "messages": prepared,
                    "tools": template_tools(tools),
                    "add_generation_prompt": add_generation_prompt,
                },
                globals=self._globals,
            )
            # Not `render`, which rewrites the traceback of an error, at a cost of milliseconds.
            text = "".join(self._template.root_render_func(context))
        except TemplateError:
            raise
        except (
            *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
            *(ArithmeticError, RuntimeError, MemoryError),
        ) as error:
            # Templates fail on input they did not foresee with whatever Python raises in them.
            raise TemplateError(f"the chat template refuses these messages: {error}") from error
        if continue_final_message:
            text = _cut_at_end_mark(text)
        if until_media and MEDIA_MARK in text:
            text = text[: text.index(MEDIA_MARK)]
        return text


def _with_end_mark(messages: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The last message, with a mark where its text ends."""
    if not messages:
        raise TemplateError("continue_final_message needs a message to continue")
    last = messages[-1]
    content = last.get("content")
    if isinstance(content, str):
        return {**last, "content": content + _END_OF_FINAL_MESSAGE}
    content = content or []
    for index in reversed(range(len(content))):
        part = content[index]
        if "text" in part:
            marked = {**part, "text": part["text"] + _END_OF_FINAL_MESSAGE}
            return {**last, "content": [*content[:index], marked, *content[index + 1 :]]}
    raise TemplateError("continue_final_message needs a final message with text")


def _cut_at_end_mark(text: str) -> str:
    end = text.rfind(_END_OF_FINAL_MESSAGE.rstrip())
    if end < 0:
        raise TemplateError("the chat template leaves out the final message")
    if text.startswith(_END_OF_FINAL_MESSAGE, end):
        return text[:end]
    return text[:end].rstrip()  # the template trims messages, so their own last spaces go, too


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


_environment = ChatSandbox(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_GenerationTag, jinja2.ext.loopcontrols],
)
_environment.filters["tojson"] = _tojson
_environment.globals["raise_exception"] = _raise_exception
_environment.globals["strftime_now"] = _strftime_now
