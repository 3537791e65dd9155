"""The partial view of a request that routing needs: model, prompt as bytes, expected length.

The body itself is forwarded untouched. Whether its values make sense is for the replica to judge:
what cannot be read here only means that the request is routed by load alone.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from prompt.assets import PromptAssets
from prompt.errors import TemplateError
from protocol.errors import BadRequest
from router.core.marks import Namespace

CHAT_PATHS = frozenset({b"/v1/chat/completions"})
COMPLETION_PATHS = frozenset({b"/v1/completions"})


class RequestView(msgspec.Struct, kw_only=True):
    """What routing reads of a body. Fields of unexpected type are left at their defaults."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[Any] | None = None
    stream: bool | None = False
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    cache_salt: str | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def namespace(self) -> Namespace:
        return (self.cache_salt,) if self.cache_salt else ()

    @property
    def expected_output_tokens(self) -> int | None:
        limit = self.max_completion_tokens or self.max_tokens
        return limit if limit is not None and limit > 0 else None


_decoder = msgspec.json.Decoder(RequestView)
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
    """The prompt as the engine's tokenizer will read it; None when the request has none we know.

    Args:
        assets: The model's template and vocabulary; without them messages are matched by their
            plain text, which only equal requests share.
    """
    if path in CHAT_PATHS and view.messages is not None:
        return _chat_prompt(view, assets)
    if path in COMPLETION_PATHS:
        return _completion_prompt(view.prompt, assets)
    return None


def _chat_prompt(view: RequestView, assets: PromptAssets | None) -> bytes | None:
    assert view.messages is not None
    if assets is None or assets.chat_template is None:
        return msgspec.json.encode(view.messages)
    try:
        text = assets.chat_template.render(
            view.messages,
            tools=view.tools,
            add_generation_prompt=view.add_generation_prompt,
            continue_final_message=view.continue_final_message,
            variables=view.chat_template_kwargs,
        )
    except (TemplateError, RecursionError):
        return None  # the replica will refuse it, with the reason
    return text.encode(errors="surrogatepass")


def _completion_prompt(prompt: str | list[Any] | None, assets: PromptAssets | None) -> bytes | None:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        bos = assets.bos_text if assets is not None else ""
        return (bos + prompt).encode(errors="surrogatepass")
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        if assets is None or min(prompt) < 0:
            return None
        return assets.vocabulary.detokenise(prompt)
    return None
