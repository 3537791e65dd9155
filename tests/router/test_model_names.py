"""Which model a name stands for."""

import pytest

from protocol.errors import BadRequest, ModelNotFound
from router.config import ModelConfig
from router.model_names import ModelNames

ONE = ModelConfig(name="llama", aliases=["default", "gpt-4*", "gpt-4o-*"], replicas=[])
TWO = ModelConfig(name="qwen", aliases=["gpt-4o-mini*", "gpt-4o-exact"], replicas=[])
REST = ModelConfig(name="rest", aliases=["*"], replicas=[])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", "llama"), ("qwen", "qwen"), ("default", "llama"), ("gpt-4", "llama"),
        ("gpt-4-turbo", "llama"), ("gpt-4o-2024", "llama"), ("gpt-4o-mini", "qwen"),
        ("gpt-4o-mini-2024", "qwen"), ("gpt-4o-exact", "qwen"), ("gpt-4o-exact-not", "llama"),
    ],
)  # fmt: skip
def test_the_exact_name_wins_then_the_longest_prefix(name: str, expected: str) -> None:
    assert ModelNames([ONE, TWO]).resolve(name) == expected
    assert ModelNames([ONE, TWO, REST]).resolve(name) == expected


@pytest.mark.parametrize("name", ["gpt-3", "Llama", "llama-2", "defaul", "qwen "])
def test_an_unknown_name_is_told_which_there_are(name: str) -> None:
    with pytest.raises(ModelNotFound, match="llama, default, qwen, gpt-4o-exact") as caught:
        ModelNames([ONE, TWO]).resolve(name)
    assert caught.value.param == "model"
    assert ModelNames([ONE, TWO, REST]).resolve(name) == "rest"


@pytest.mark.parametrize("name", [None, ""])
def test_without_a_name_the_only_model_is_meant(name: str | None) -> None:
    assert ModelNames([ONE]).resolve(name) == "llama"
    with pytest.raises(BadRequest, match="model is required, one of: llama") as caught:
        ModelNames([ONE, TWO]).resolve(name)
    assert caught.value.param == "model"


def test_names_without_wildcards_are_listed() -> None:
    assert ModelNames([ONE, TWO]).listed == ["llama", "default", "qwen", "gpt-4o-exact"]
    with pytest.raises(ModelNotFound):
        ModelNames([ModelConfig(name="a", replicas=[])]).resolve("b")
