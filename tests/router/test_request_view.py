"""What routing reads of a body, and what it leaves for the replica to judge."""

import json
from typing import Any

import pytest

from prompt.assets import PromptAssets
from prompt.chat_template import ChatTemplate
from prompt.spelling import Spelling
from protocol.errors import BadRequest
from router.request_view import RequestView, prompt_bytes, view_of, with_model
from tests.support.event_publisher import BYTE_VOCABULARY

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if style %}[{{ style }}]{% endif %}"
    "{% for d in documents or [] %}{{ d.text }}:{{ reasoning_effort }}:{{ enable_thinking }}"
    "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if not messages %}{{ raise_exception('no messages') }}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BOS_FIRST = {
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
        "special_tokens": {"<s>": {"tokens": ["<s>"]}},
    }
}
ASSETS = PromptAssets(
    chat_template=ChatTemplate(TEMPLATE),
    vocabulary=BYTE_VOCABULARY,
    spelling=Spelling(BOS_FIRST, "test"),
)
NO_TEMPLATE = PromptAssets(
    chat_template=None, vocabulary=BYTE_VOCABULARY, spelling=Spelling({}, "test")
)
HI = [{"role": "user", "content": "hi"}]
CHAT, TEXT = b"/v1/chat/completions", b"/v1/completions"


@pytest.mark.parametrize(
    ("path", "body", "assets", "expected"),
    [
        pytest.param(CHAT, {"messages": HI}, ASSETS, b"<user>hi</><assistant>", id="chat"),
        pytest.param(
            CHAT, {"messages": HI, "add_generation_prompt": False}, ASSETS, b"<user>hi</>",
            id="no-generation-prompt",
        ),
        pytest.param(
            CHAT, {"messages": HI, "chat_template_kwargs": {"style": "dry"}}, ASSETS,
            b"<user>hi</>[dry]<assistant>", id="template-variables",
        ),
        pytest.param(
            CHAT,
            {"messages": HI, "add_generation_prompt": False, "continue_final_message": True},
            ASSETS, b"<user>hi", id="continue-final-message",
        ),
        pytest.param(
            CHAT, {"messages": [{"role": "user", "content": "\u00fc\U0001f600"}]}, ASSETS,
            "<user>\u00fc\U0001f600</><assistant>".encode(), id="not-ascii",
        ),
        pytest.param(CHAT, {"messages": []}, ASSETS, None, id="template-refuses"),
        pytest.param(CHAT, {"messages": None}, ASSETS, None, id="no-messages"),
        pytest.param(CHAT, {"messages": [{"role": "assistant", "content": "x", "tool_calls": 5}]},
                     ASSETS, None, id="messages-of-the-wrong-form"),
        pytest.param(CHAT, {"messages": HI * 20_001}, ASSETS, None, id="messages-without-end"),
        pytest.param(CHAT, {"messages": HI}, None, json.dumps(HI, separators=(",", ":")).encode(),
                     id="no-tokenizer"),
        pytest.param(CHAT, {"messages": HI}, NO_TEMPLATE,
                     json.dumps(HI, separators=(",", ":")).encode(), id="no-template"),
        pytest.param(CHAT, {"messages": HI, "add_special_tokens": True}, ASSETS,
                     b"<s><user>hi</><assistant>", id="chat-with-special-tokens"),
        pytest.param(CHAT, {"messages": HI, "chat_template": "{{ 1 }}"}, ASSETS, None,
                     id="a-template-of-the-clients"),
        pytest.param(CHAT, {"messages": HI, "truncate_prompt_tokens": 5}, ASSETS, None,
                     id="truncated"),
        pytest.param(
            CHAT,
            {"messages": HI, "documents": [{"text": "d"}], "reasoning_effort": "low",
             "chat_template_kwargs": {"documents": [], "style": "dry"}},
            ASSETS, b"<user>hi</>[dry]d:low:True<assistant>", id="documents-and-effort",
        ),
        pytest.param(
            CHAT,
            {"messages": [*HI, {"role": "user", "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "x"}}]}]},
            ASSETS, b"<user>hi</><user>", id="up-to-the-first-image",
        ),
        pytest.param(TEXT, {"prompt": "hi", "add_special_tokens": False}, ASSETS, b"hi",
                     id="text-without-special-tokens"),
        pytest.param(TEXT, {"prompt": "hi", "prompt_embeds": "AA"}, ASSETS, None, id="embeddings"),
        pytest.param(TEXT, {"prompt": "hi"}, ASSETS, b"<s>hi", id="text"),
        pytest.param(TEXT, {"prompt": "hi"}, None, b"hi", id="text-no-tokenizer"),
        pytest.param(TEXT, {"prompt": ["hi"]}, ASSETS, b"<s>hi", id="one-text-in-a-list"),
        pytest.param(TEXT, {"prompt": ["hi", "ho"]}, ASSETS, None, id="several-texts"),
        pytest.param(TEXT, {"prompt": [104, 105]}, ASSETS, b"hi", id="token-ids"),
        pytest.param(TEXT, {"prompt": [[104, 105]]}, ASSETS, b"hi", id="token-ids-in-a-list"),
        pytest.param(TEXT, {"prompt": [[104], [105]]}, ASSETS, None, id="several-token-lists"),
        pytest.param(TEXT, {"prompt": [104, 7]}, None, b"h\0\0\0\7\0\0\0",
                     id="token-ids-no-tokenizer"),
        pytest.param(CHAT, {"messages": HI, "tools": [{"a": 1}]}, None,
                     b'[{"a":1}]' + json.dumps(HI, separators=(",", ":")).encode(),
                     id="tools-no-tokenizer"),
        pytest.param(TEXT, {"prompt": [104, -1]}, ASSETS, None, id="negative-token"),
        pytest.param(TEXT, {"prompt": [104, 10**30]}, ASSETS, None, id="token-out-of-range"),
        pytest.param(TEXT, {"prompt": [1.5]}, ASSETS, None, id="fractions"),
        pytest.param(TEXT, {"prompt": [["hi"]]}, ASSETS, None, id="nested-too-deeply"),
        pytest.param(TEXT, {"prompt": []}, ASSETS, None, id="empty-list"),
        pytest.param(TEXT, {"prompt": None}, ASSETS, None, id="null"),
        pytest.param(TEXT, {"prompt": {"a": 1}}, ASSETS, None, id="prompt-is-an-object"),
        pytest.param(b"/v1/embeddings", {"prompt": "hi"}, ASSETS, None, id="another-path"),
    ],
)  # fmt: skip
def test_the_prompt_is_what_the_engines_tokenizer_reads(
    path: bytes, body: dict[str, Any], assets: PromptAssets | None, expected: bytes | None
) -> None:
    assert prompt_bytes(path, view_of(json.dumps(body).encode()), assets) == expected


def test_tools_are_part_of_the_prompt() -> None:
    tool = {"function": {"parameters": {"b": 1, "a": 2}, "name": "look"}, "type": "function"}
    view = view_of(json.dumps({"messages": HI, "tools": [tool]}).encode())
    assert prompt_bytes(CHAT, view, ASSETS) == (
        b'<user>hi</>[{"type": "function", "function": {"name": "look", "description": null, '
        b'"parameters": {"b": 1, "a": 2}}}]<assistant>'
    )


def test_tools_nested_as_deep_as_the_decoder_allows_do_not_end_the_request() -> None:
    for depth in (100, 300, 600, 900):
        body = b'{"messages":[{"role":"user","content":"x"}],"tools":[{"a":%b%b}]}'
        try:
            view = view_of(body % (b"[" * depth, b"]" * depth))
        except BadRequest:
            continue
        prompt_bytes(CHAT, view, ASSETS)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="truncated"),
        pytest.param(b"[]", id="an-array"),
        pytest.param(b'"text"', id="text"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"model":"\xff"}', id="not-utf-8"),
        pytest.param(b'{"stream": 5, "x": ', id="truncated-after-a-wrong-type"),
        pytest.param(b'{"stream": 5, "model": "\xff"}', id="not-utf-8-after-a-wrong-type"),
        pytest.param(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="nested-without-end"),
        pytest.param(b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="nested-known"),
        pytest.param(b'{"a":1}{"b":2}', id="two-objects"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        view_of(body)


def test_a_model_of_the_wrong_type_names_the_field() -> None:
    with pytest.raises(BadRequest, match="model must be a string") as caught:
        view_of(b'{"model": 7}')
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    "field",
    ['"stream": "yes"', '"messages": "hi"', '"messages": ["hi"]', '"max_tokens": 1.5',
     '"tools": {}', '"cache_salt": 1', '"add_generation_prompt": null', '"max_tokens": "4"'],
)  # fmt: skip
def test_other_fields_of_the_wrong_type_are_for_the_replica_to_judge(field: str) -> None:
    view = view_of(('{"model": "m", %s}' % field).encode())  # noqa: UP031
    assert view == RequestView(model="m")


def test_limits_and_salt_are_read() -> None:
    view = view_of(b'{"max_tokens": 5, "max_completion_tokens": 7, "cache_salt": "a"}')
    assert (view.expected_output_tokens, view.namespace) == (7, (None, "a"))
    assert view_of(b'{"max_tokens": -1}').expected_output_tokens is None
    assert view_of(b'{"cache_salt": ""}').namespace == ()


def test_with_model_keeps_every_other_value_as_it_was() -> None:
    body = b'{"a": 1.50, "model" : "alias", "b": {"k" : "\\u0041"}, "n": 1e5, "big": 12345678901234567890123}'  # noqa: E501
    assert with_model(body, 'na"me') == (
        b'{"a":1.50,"model":"na\\"me","b":{"k" : "\\u0041"},"n":1e5,"big":12345678901234567890123}'
    )
