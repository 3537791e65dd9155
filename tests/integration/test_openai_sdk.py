"""The OpenAI Python SDK, unmodified, against the router."""

from collections.abc import Iterator

import openai
import pytest

from tests.support.stack import MODEL, Stack

pytestmark = pytest.mark.processes


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Say hello."}],
        max_tokens=8,
        temperature=0,
        seed=1,
    )
    choice = completion.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 8
    assert completion.usage.prompt_tokens_details is not None


def test_a_stream_says_the_same_as_the_whole_answer_and_ends_with_the_usage(
    client: openai.OpenAI,
) -> None:
    question: list[openai.types.chat.ChatCompletionMessageParam] = [
        {"role": "user", "content": "Name three colours."}
    ]
    whole = client.chat.completions.create(
        model=MODEL, messages=question, max_tokens=16, temperature=0
    )
    stream = client.chat.completions.create(
        model=MODEL,
        messages=question,
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_completions_and_their_stream(client: openai.OpenAI) -> None:
    prompt = "Once upon a time, there was"
    whole = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0)
    stream = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=8, temperature=0, stream=True
    )
    assert whole.choices[0].text
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_a_seed_makes_sampling_repeatable(client: openai.OpenAI) -> None:
    def sample(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Invent a name."}],
            max_tokens=12,
            temperature=1.5,
            seed=seed,
        )
        return answer.choices[0].message.content

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    def complete(**options: object) -> openai.types.CompletionChoice:
        return client.completions.create(
            model=MODEL,
            prompt="1, 2, 3, 4, 5, 6,",
            max_tokens=16,
            temperature=0,
            **options,  # type: ignore[call-overload]
        ).choices[0]

    free = complete()
    assert "9" in free.text
    stopped = complete(stop=["9"])
    assert stopped.text == free.text.partition("9")[0]
    assert stopped.finish_reason == "stop"


def test_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {MODEL, "default"}
    assert client.models.retrieve(MODEL).id == MODEL


def test_an_alias_is_served(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], max_tokens=1
    )
    assert completion.model == MODEL


def test_an_unknown_model_is_a_404_that_names_the_models(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(
            model="nothing", messages=[{"role": "user", "content": "Hi"}]
        )
    assert MODEL in caught.value.message
    assert caught.value.code == "model_not_found"


def test_a_bad_value_is_a_400_that_names_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], temperature=-1
        )
    assert caught.value.param == "temperature"
