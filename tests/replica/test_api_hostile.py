"""Input made to break the API: every answer is right or a 4xx, and nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from prompt.chat_template import ChatTemplate
from tests.support.byte_model import ByteTokenizer
from tests.support.fake_engine import ApiHarness, GatedRunner, make_config, running_api

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def api() -> AsyncIterator[ApiHarness]:
    async with running_api(make_config()) as harness:
        yield harness
        await nothing_left(harness)


async def nothing_left(api: ApiHarness) -> None:
    """Nothing runs, waits or holds a block, and a request is answered."""
    await api.until(lambda stats: not (stats.running or stats.waiting or stats.held_blocks))
    status, answer = await api.post(PLAIN, {"prompt": "fine\n"})
    assert (status, answer["choices"][0]["text"]) == (200, "fine")
    _, load = await api.get("/load")
    assert (load["server_load"], load["running"], load["waiting"]) == (0, 0, 0)
    assert api.api.client.num_generations == 0


async def send(api: ApiHarness, path: str, body: bytes) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    async with api.session.post(api.url + path, data=body, headers=headers) as response:
        return response.status, await response.json()


def chat_with(fields: str) -> bytes:
    return b'{"messages":[{"role":"user","content":"hi"}],' + fields.encode() + b"}"


BODIES = {
    "a float beyond range": chat_with('"temperature":1e400'),
    "an integer of 30 digits": chat_with(f'"seed":{"1" * 30}'),
    "an integer of 5,000 digits": chat_with(f'"seed":{"1" * 5000}'),
    "max_tokens of 5,000 digits": chat_with(f'"max_tokens":{"1" * 5000}'),
    "a lone surrogate in a message": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "a lone surrogate in a salt": chat_with('"cache_salt":"\\ud83d"'),
    "bytes that are not UTF-8": b'{"messages":[{"role":"user","content":"\xff\xfe"}]}',
    "NaN": chat_with('"temperature":NaN'),
    "nesting beyond the decoder": chat_with(f'"tools":[{{"a":{"[" * 5000}{"]" * 5000}}}]'),
    "nesting beyond the template": chat_with(f'"tools":[{{"a":{"[" * 980}{"]" * 980}}}]'),
    "a message nested deeply": (
        b'{"messages":[{"role":"user","content":"hi","tool_calls":[{"a":'
        + b"[" * 970
        + b"]" * 970
        + b"}]}]}"
    ),
    "stream_options without stream": chat_with('"stream_options":{"include_usage":true}'),
    "a seed above 64 bits": chat_with(f'"seed":{2**64}'),
    "a seed below 64 bits": chat_with(f'"seed":{-(2**63) - 1}'),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_hostile_body_is_a_400(api: ApiHarness, body: bytes) -> None:
    status, answer = await send(api, CHAT, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), answer


@pytest.mark.parametrize(
    "text",
    [
        "a\0b",
        "\ufeffx",
        "e\u0301",
        "👩‍👩‍👧‍👦 flags 🇦🇹",
        "a" * 100,
        "\u202etxet\u202c",
        "\x7f\x1b[0m",
    ],
    ids=["NUL", "BOM", "combining", "emoji", "one long word", "bidi", "control"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_odd_text_comes_back_as_it_was(api: ApiHarness, text: str, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": text}], "stream": stream}
    async with api.session.post(api.url + CHAT, json=body) as response:
        raw = await response.read()
    if stream:
        events = [msgspec.json.decode(one[6:]) for one in raw.split(b"\n\n")[:-2]]
        said = "".join(one["choices"][0]["delta"].get("content", "") for one in events)
    else:
        said = msgspec.json.decode(raw)["choices"][0]["message"]["content"]
    assert said == text


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        ("é", "ab"),
        ("👩‍👩‍👧‍👦", "abé"),
        ("‍👧", "abé👩‍👩"),
        ("👦" * 1024, "abé👩‍👩‍👧‍👦z"),
    ],
    ids=["two bytes", "a family", "inside the family", "the longest"],
)
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_stop_strings_of_many_bytes_are_found(
    api: ApiHarness, stop: str, said: str, stream: bool
) -> None:
    body = {"prompt": "abé👩‍👩‍👧‍👦z\n", "stop": stop, "max_tokens": 60, "stream": stream}
    async with api.session.post(api.url + PLAIN, json=body) as response:
        assert response.status == 200
        raw = await response.read()
    if stream:
        events = [msgspec.json.decode(one[6:]) for one in raw.split(b"\n\n")[:-2]]
        assert "".join(one["choices"][0]["text"] for one in events) == said
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        assert msgspec.json.decode(raw)["choices"][0]["text"] == said


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1, 2**63, 2**64 - 1])
async def test_any_seed_of_64_bits_is_taken(api: ApiHarness, seed: int) -> None:
    status, _ = await api.post(CHAT, {"messages": HI, "seed": seed})
    assert status == 200


async def test_template_variables_reach_the_template(api: ApiHarness) -> None:
    body = {"messages": HI, "chat_template_kwargs": {"enable_thinking": False, "variables": 1}}
    status, answer = await api.post(CHAT, body)
    assert status == 200, answer


class BosTokenizer(ByteTokenizer):
    """Puts a byte before a text where special tokens are wanted."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return super().encode("^" * add_special_tokens + text, add_special_tokens)


@pytest.mark.parametrize(
    ("path", "body", "usually"),
    [(CHAT, {"messages": HI}, False), (PLAIN, {"prompt": "hi\n"}, True)],
    ids=["chat", "completion"],
)
async def test_special_tokens_are_added_as_asked(
    api: ApiHarness, path: str, body: dict[str, Any], usually: bool
) -> None:
    model = api.api.model
    assert model is not None
    api.api.model = replace(model, tokenizer=BosTokenizer())
    counts = {}
    for asked in (None, True, False):
        status, answer = await api.post(path, {**body, "add_special_tokens": asked})
        assert status == 200, answer
        counts[asked] = answer["usage"]["prompt_tokens"]
    api.api.model = model
    assert counts[True] == counts[False] + 1
    assert counts[None] == counts[usually]


async def test_documents_effort_and_reasoning_reach_the_template(api: ApiHarness) -> None:
    model = api.api.model
    assert model is not None
    template = ChatTemplate(
        "{% for message in messages %}{{ message.reasoning or '-' }}:{{ message.content }};"
        "{% endfor %}{{ documents[0].text }};{{ reasoning_effort }};{{ enable_thinking }}{{ '\n' }}"
    )
    api.api.model = replace(model, chat_template=template)
    said = {"role": "assistant", "content": "yes", "reasoning": "hm"}
    body = {
        "messages": [*HI, said, *HI],
        "documents": [{"text": "a page"}],
        "reasoning_effort": "low",
    }
    status, answer = await api.post(CHAT, body)
    api.api.model = model
    assert status == 200, answer
    text = answer["choices"][0]["message"]["content"]
    assert text.endswith("hm:yes;-:hi;a page;low;True"), text


@pytest.mark.parametrize(
    ("length", "status", "tokens"),
    [(254, 200, 2), (255, 200, 1), (256, 400, None), (257, 400, None)],
)
async def test_the_context_is_filled_to_its_last_token_and_not_beyond(
    api: ApiHarness, length: int, status: int, tokens: int | None
) -> None:
    body = {"prompt": "a" * (length - 1) + "\n", "max_tokens": 10**9, "ignore_eos": True}
    found, answer = await api.post(PLAIN, body)
    assert found == status
    if tokens is not None:
        assert answer["usage"]["completion_tokens"] == tokens
        assert answer["choices"][0]["finish_reason"] == "length"


async def test_equal_prompts_of_whole_blocks_at_once_are_all_answered(api: ApiHarness) -> None:
    body = {"prompt": "a" * 31 + "\n", "max_tokens": 40}
    answers = await asyncio.gather(*(api.post(PLAIN, body) for _ in range(40)))
    assert {answer["choices"][0]["text"] for _, answer in answers} == {"a" * 31}
    assert {answer["usage"]["prompt_tokens_details"]["cached_tokens"] for _, answer in answers} <= {
        0,
        28,
    }


async def test_ten_thousand_messages_are_rendered_and_refused_for_their_length(
    api: ApiHarness,
) -> None:
    status, answer = await api.post(CHAT, {"messages": HI * 10_000})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_flood_is_refused_with_retry_after_and_passes() -> None:
    config = make_config(engine={"max_running_sequences": 2, "max_waiting_sequences": 3})
    runner = GatedRunner(config.engine.block_size)
    async with running_api(config, runner) as api:

        async def ask(number: int) -> tuple[int, str | None]:
            body = {"prompt": f"{number} and more\n", "stream": number % 2 == 0}
            async with api.session.post(api.url + PLAIN, json=body) as response:
                await response.read()
                return response.status, response.headers.get("Retry-After")

        asked = [asyncio.create_task(ask(number)) for number in range(60)]
        while sum(one.done() for one in asked) < 55:
            await asyncio.wait(
                [one for one in asked if not one.done()], return_when=asyncio.FIRST_COMPLETED
            )
        runner.allow(10_000)
        answers = await asyncio.gather(*asked)
        assert sorted(set(answers), key=str) == [(200, None), (429, "1")]
        assert sum(status == 200 for status, _ in answers) == 5
        await nothing_left(api)


@pytest.mark.parametrize("steps", [0, 1, 5, 40], ids="after {} steps".format)
async def test_a_storm_of_disconnects_leaves_nothing(steps: int) -> None:
    """Some run, some wait; prompts of several chunks; streamed and whole."""
    config = make_config(
        engine={"max_running_sequences": 4, "max_batched_tokens": 16, "max_waiting_sequences": 30}
    )
    runner = GatedRunner(config.engine.block_size)
    async with running_api(config, runner) as api:
        tasks = [
            asyncio.create_task(
                api.post(
                    PLAIN,
                    {
                        "prompt": f"{number}" * 50 + "\n",
                        "max_tokens": 100,
                        "ignore_eos": True,
                        "stream": number % 2 == 0,
                    },
                )
            )
            for number in range(20)
        ]
        runner.allow(1)
        await api.until(lambda stats: stats.running + stats.waiting >= 1)
        if steps:
            runner.allow(steps)
            await api.until(lambda stats: stats.steps > steps)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        runner.allow(10_000)
        await nothing_left(api)


async def test_a_reset_and_snapshots_under_load_change_no_answer() -> None:
    config = make_config(engine={"kv_cache_blocks": 70, "max_running_sequences": 4})
    async with running_api(config) as api:
        lines = [f"{number} {'shared ' * 5}" for number in range(24)]
        asked = [
            asyncio.create_task(api.post(PLAIN, {"prompt": line + "\n", "max_tokens": 60}))
            for line in lines
        ]
        while not all(one.done() for one in asked):
            async with api.session.get(api.url + "/kv_cache/snapshot") as response:
                assert response.status == 200
                await response.read()
            assert (await api.post("/reset_prefix_cache", None))[0] == 200
        answers = [(await one)[1]["choices"][0]["text"] for one in asked]
        assert answers == lines
        await nothing_left(api)


async def test_a_text_too_long_for_the_context_is_refused_without_tokenising_it(
    api: ApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: ByteTokenizer, text: str, add_special_tokens: bool) -> list[int]:
        raise AssertionError("tokenised")

    with monkeypatch.context() as patch:
        patch.setattr(ByteTokenizer, "encode", encode)
        for path, body in (
            (PLAIN, {"prompt": "a" * 5000}),
            (CHAT, {"messages": [{"role": "user", "content": "a" * 5000}]}),
        ):
            status, answer = await api.post(path, body)
            assert (status, answer["error"]["code"]) == (400, "context_length_exceeded"), answer


async def test_a_null_echo_is_none(api: ApiHarness) -> None:
    assert (await api.post(PLAIN, {"prompt": "a\n", "echo": None}))[0] == 200


async def test_tokenising_is_bounded_as_completions_are(api: ApiHarness) -> None:
    engine = api.api.config.engine
    api.api.num_requests += engine.max_running_sequences + engine.max_waiting_sequences
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})):
        status, answer = await api.post(path, body)
        assert (status, answer["error"]["code"]) == (429, "overloaded")
    api.api.num_requests = 0
