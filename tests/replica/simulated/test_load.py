"""What a simulated device takes from a model's files, and how it says what is wrong with them."""

from pathlib import Path

import pytest

from prompt.assets import resolve_model_path
from replica.config import ReplicaConfig
from replica.simulated.load import load_simulated, words_of
from replica.tokenizer import Tokenizer
from tests.integration.test_huggingface_directory import save_tokenizer
from tests.support.fake_engine import make_config
from tests.support.stack import MODEL_PATH


def config_of(path: Path, **simulated: object) -> ReplicaConfig:
    engine = {"backend": "simulated", "simulated": simulated, "max_running_sequences": 8}
    return make_config(model={"path": str(path)}, engine=engine)


def test_the_embedded_models_words_come_back_as_the_tokens_they_were() -> None:
    tokenizer = Tokenizer.load(resolve_model_path(MODEL_PATH))
    words = words_of(tokenizer)
    assert len(words) > 10_000
    assert not tokenizer.eos_token_ids & set(words)
    some = [*words[:200], *words[-200:], *words[::50]]
    assert tokenizer.encode(tokenizer.decode(some), add_special_tokens=False) == some


def test_a_small_vocabulary_gives_all_its_tokens_that_have_a_text(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    words = words_of(tokenizer)
    assert 64 < len(words) < tokenizer.vocab_size
    assert all(tokenizer.detokenizer().push(word) for word in words)
    assert not tokenizer.eos_token_ids & set(words)


def test_a_tokenizer_is_all_that_is_needed_of_a_model(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    runner = load_simulated(config_of(tmp_path, answer_tokens=5))
    assert runner.vocab_size == Tokenizer.load(tmp_path).vocab_size
    assert runner.num_blocks == 128


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_simulated(config_of(tmp_path))
    with pytest.raises(ValueError, match="no such file or directory"):
        load_simulated(config_of(tmp_path / "nowhere"))


def test_answers_cannot_end_without_a_token_that_ends(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    text = (tmp_path / "tokenizer.json").read_text().replace("<|im_end|>", "<|over|>")
    (tmp_path / "tokenizer.json").write_text(text)
    load_simulated(config_of(tmp_path))
    with pytest.raises(ValueError, match=r"engine\.simulated\.answer_tokens"):
        load_simulated(config_of(tmp_path, answer_tokens=5))
