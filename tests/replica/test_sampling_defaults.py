"""What a model's makers say of sampling counts where the client says nothing."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers

from prompt.errors import ModelFileError
from protocol.openai import ChatRequest
from replica.api.validation import wish_of_chat
from replica.app import load_served_text
from replica.core.plan import SamplingParams
from replica.sampling_defaults import SamplingDefaults, read_sampling_defaults
from tests.support.fake_engine import make_config


def write(directory: Path, content: Any) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(content))
    return directory


def test_a_directorys_generation_config_is_read(tmp_path: Path) -> None:
    content = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.01, "do_sample": True}
    assert read_sampling_defaults(write(tmp_path, content)) == SamplingDefaults(
        temperature=0.6, top_p=0.95, top_k=20, min_p=0.01
    )


def test_without_the_file_and_for_a_gguf_the_apis_defaults_hold(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()
    assert read_sampling_defaults(tmp_path / "model.gguf") == SamplingDefaults()
    assert read_sampling_defaults(write(tmp_path, {"top_k": 0})).top_k is None
    assert read_sampling_defaults(write(tmp_path, {"top_k": None})) == SamplingDefaults()


def test_what_is_not_applied_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_sampling_defaults(write(tmp_path, {"repetition_penalty": 1.1, "max_new_tokens": 9}))
    assert "max_new_tokens=9, repetition_penalty=1.1" in caplog.text
    caplog.clear()
    read_sampling_defaults(write(tmp_path, {"repetition_penalty": 1.0}))
    assert not caplog.text


@pytest.mark.parametrize(
    "wrong", [{"temperature": "hot"}, {"top_p": 0}, {"min_p": 1}, {"top_k": -3}]
)
def test_a_wrong_value_names_the_file_and_the_field(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (field,) = wrong
    with pytest.raises(ModelFileError, match=rf"generation_config\.json: .*{field}"):
        read_sampling_defaults(write(tmp_path, wrong))


def test_a_client_overrides_each_default() -> None:
    defaults = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.05)

    def sampling(**fields: Any) -> SamplingParams:
        body = {"messages": [{"role": "user", "content": "hi"}], "seed": 1, **fields}
        return wish_of_chat(msgspec.convert(body, ChatRequest), lambda: 0, 100, defaults).sampling

    assert sampling() == SamplingParams(temperature=0.6, top_p=0.9, top_k=20, min_p=0.05, seed=1)
    assert sampling(temperature=0, top_p=1, top_k=0, min_p=0) == SamplingParams(
        temperature=0, top_p=1, top_k=None, min_p=0, seed=1
    )


def test_the_configuration_says_whether_the_recommendation_counts(tmp_path: Path) -> None:
    model = tokenizers.models.BPE(vocab={"a": 0}, merges=[])
    tokenizers.Tokenizer(model).save(str(write(tmp_path, {"top_k": 7}) / "tokenizer.json"))
    found = [
        load_served_text(make_config(model={"path": str(tmp_path), "generation_config": choice}))
        for choice in ("auto", "none")
    ]
    assert [one.sampling.top_k for one in found] == [7, None]
