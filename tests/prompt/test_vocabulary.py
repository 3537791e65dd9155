"""Token ids become exactly the bytes that the tokenizer made them from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt.assets import load_prompt_assets, resolve_model_path
from prompt.errors import ModelFileError
from prompt.vocabulary import IdVocabulary, Vocabulary


@pytest.fixture(scope="module")
def byte_level_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory with a small byte-level BPE tokenizer, trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = tmp_path_factory.mktemp("byte-level")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, naïve café 猫"] * 20, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        '{"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>",'
        ' "chat_template": "{{ bos_token }}{{ messages[0].content }}"}'
    )
    return path


@given(text=st.text(max_size=50))
def test_any_text_comes_back_from_its_tokens(text: str, byte_level_directory: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(byte_level_directory / "tokenizer.json"))
    vocabulary = load_prompt_assets(byte_level_directory).vocabulary
    prompt = f"<|im_start|>{text}<|im_end|>"
    assert vocabulary.detokenise(tokenizer.encode(prompt).ids) == prompt.encode()


def test_a_directory_says_its_template_and_special_tokens(byte_level_directory: Path) -> None:
    assets = load_prompt_assets(byte_level_directory)
    assert assets.chat_template is not None
    assert assets.chat_template.render([{"role": "user", "content": "x"}]) == "<|im_start|>x"


def test_sentencepiece_writes_spaces_and_bytes_its_own_way() -> None:
    vocabulary = Vocabulary.build(
        {0: "<s>", 1: "▁Hello", 2: "<0xE7>", 3: "<0x8C>", 4: "<0xAB>", 5: "▁<s>"},
        {0},
        "sentencepiece",
    )
    assert vocabulary.detokenise([0, 1, 2, 3, 4]).decode() == "<s> Hello猫"


def test_ids_beyond_the_vocabulary_have_no_bytes() -> None:
    assert Vocabulary([b"a"]).detokenise([0, 7, 0]) == b"aa"


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("/nowhere/model.gguf", "no such file"),
        ("package:no_such_package/x.gguf", "no Python package"),
        ("package:prompt/nothing.gguf", "has no file 'nothing.gguf'"),
        ("package:prompt", "has no file ''"),
    ],
)
def test_a_missing_model_is_one_clear_line(reference: str, says: str) -> None:
    with pytest.raises(ModelFileError, match=says):
        resolve_model_path(reference)


def test_a_file_that_is_no_gguf_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model, but long enough to have a header of some bytes")
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        load_prompt_assets(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "tokenizer.json"), ('{"model": {"vocab": []}}', "has no vocabulary")],
    ids=["broken JSON", "empty"],
)
def test_a_tokenizer_that_is_not_understood_says_so(
    content: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFileError, match=says):
        load_prompt_assets(tmp_path)


@given(st.lists(st.integers(0, 110), max_size=40), st.integers(1, 9))
def test_blocks_are_spelled_one_by_one(ids: list[int], block_size: int) -> None:
    blocks = [ids[at : at + block_size] for at in range(0, len(ids), block_size)]
    for vocabulary in (Vocabulary([b"%d," % number for number in range(100)]), IdVocabulary()):
        texts = vocabulary.detokenise_blocks(ids, block_size)
        assert texts == [vocabulary.detokenise(block) for block in blocks]
        assert b"".join(texts) == vocabulary.detokenise(ids)
