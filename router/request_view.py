"""The partial view of a request that routing needs: model, prompt as bytes, expected length.

The body itself is forwarded untouched. Whether its values make sense is for the replica to judge:
what cannot be read here only means that the request is routed by load alone.
"""

from array import array
from collections.abc import Mapping
from typing import Any

import msgspec

from prompt.assets import PromptAssets
from prompt.errors import TemplateError
from prompt.messages import template_variables
from prompt.vocabulary import IdVocabulary
from protocol.errors import BadRequest
from router.core.ids import Namespace, namespace_of

CHAT_PATHS = frozenset({b"/v1/chat/completions"})
COMPLETION_PATHS = frozenset({b"/v1/completions"})


class RequestView(msgspec.Struct, kw_only=True):
    """What routing reads of a body. Fields of unexpected type are left at their defaults."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[Any] | None = None
    stream: bool | None = False
    stream_options: Any = None
    n: Any = None
    best_of: Any = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    cache_salt: str | None = None
    priority: int | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    # What makes a prompt that we cannot know:
    chat_template: str | None = None
    truncate_prompt_tokens: int | None = None
    prompt_embeds: Any = None

    @property
    def namespace(self) -> Namespace:
        return namespace_of(None, self.cache_salt or None)

    @property
    def is_one_stream(self) -> bool:
        """Whether its answer is a stream of one choice."""
        return bool(self.stream) and self.n in (None, 1) and self.best_of in (None, 1)

    @property
    def wants_usage(self) -> bool:
        options = self.stream_options
        return isinstance(options, Mapping) and options.get("include_usage") is True

    @property
    def expected_output_tokens(self) -> int | None:
        limit = self.max_completion_tokens or self.max_tokens
        return limit if limit is not None and limit > 0 else None


# Longer conversations are routed by load: rendering them would keep all others waiting.
_MESSAGES_MAX = 20_000

_decoder = msgspec.json.Decoder(RequestView)
# Without a tokenizer a token is its id, to the index too.
_IDS = IdVocabulary()
# msgspec raises Python's own errors for text that is not UTF-8 and for nesting without end.
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def view_of(body: bytes) -> RequestView:
    """
    Raises:
        BadRequest: the body is not a JSON object.
    """
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError:
        return _view_of_odd_body(body)
    except _NOT_JSON as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error


def _view_of_odd_body(body: bytes) -> RequestView:
    """A body with a field of the wrong type: the replica will say which; its model still counts."""
    try:
        content = msgspec.json.decode(body)
    except _NOT_JSON as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise BadRequest("the body must be a JSON object")
    model = content.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequest("model must be a string", param="model")
    return RequestView(model=model)


def with_model(body: bytes, model: str) -> bytes:
    """The body asking for `model`: replicas do not know the router's aliases. The rest is kept."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def prompt_bytes(path: bytes, view: RequestView, assets: PromptAssets | None) -> bytes | None:
    """The prompt as the bytes of its tokens; None when the request has none we know.

    Of a chat with images it is what comes before the first: an engine's blocks from there on hold
    more than text.

    Args:
        assets: The model's template, spelling and vocabulary; without them messages are matched by
            their plain text, which only equal requests share.
    """
    if view.truncate_prompt_tokens is not None or view.prompt_embeds is not None:
        return None
    if path in CHAT_PATHS and view.messages is not None:
        return _chat_prompt(view, assets)
    if path in COMPLETION_PATHS:
        return _completion_prompt(view, assets)
    return None


def _chat_prompt(view: RequestView, assets: PromptAssets | None) -> bytes | None:
    assert view.messages is not None
    if view.chat_template is not None:
        return None  # a client's own template is not for us to run
    if len(view.messages) > _MESSAGES_MAX:
        return None
    if assets is None or assets.chat_template is None:
        tools = msgspec.json.encode(view.tools) if view.tools else b""
        return tools + msgspec.json.encode(view.messages)
    try:
        text = assets.chat_template.render(
            view.messages,
            tools=view.tools,
            add_generation_prompt=view.add_generation_prompt,
            continue_final_message=view.continue_final_message,
            variables=template_variables(
                view.chat_template_kwargs, view.documents, view.reasoning_effort
            ),
            until_media=True,
        )
    except TemplateError:
        return None  # the replica will refuse it, with the reason
    return assets.spelling.spell(text, add_special_tokens=bool(view.add_special_tokens))


def _completion_prompt(view: RequestView, assets: PromptAssets | None) -> bytes | None:
    prompt = view.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        if assets is None:
            return prompt.encode(errors="surrogatepass")
        return assets.spelling.spell(
            prompt, add_special_tokens=view.add_special_tokens is not False
        )
    if isinstance(prompt, list) and prompt and _are_token_ids(prompt):
        return (_IDS if assets is None else assets.vocabulary).detokenise(prompt)
    return None


def _are_token_ids(prompt: list[Any]) -> bool:
    """Whether all are whole numbers that a token could have.

    (True and False pass for 1 and 0: to look at each type takes longer than all the rest, and an
    engine will refuse them.)
    """
    try:
        array("I", prompt)
    except (TypeError, OverflowError):
        return False
    return True
