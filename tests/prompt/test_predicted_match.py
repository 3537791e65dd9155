"""What the router predicts from text is what an engine finds by tokens, for whole conversations.

Four kinds of models: template and tokenizer in the style of Llama 3, Qwen (tools, NFC), Mistral
(SentencePiece) and SmolLM2, small, and trained here. Everything goes the way it goes in service:
files on disk, the request's body, the replica's tokenizer, the tree.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from prompt.assets import PromptAssets, load_prompt_assets
from replica.tokenizer import Tokenizer
from router.core.prefix_tree import PrefixTree
from router.request_view import prompt_bytes, view_of

BLOCK_TOKENS = 8
CHAT = b"/v1/chat/completions"

LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message.tool_calls %}
        {{- message.tool_calls[0].function.arguments | tojson }}
    {%- else %}
        {{- message['content'] | trim }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
QWEN = """{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
    {%- if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}
    {%- else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}
{%- endfor %}"""
PARTS = """{% for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{{ part.text }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

CORPUS = [
    "the cat sat on the mat and the dog said: how are you today, my friend? I am well, thank you.",
    "user assistant system tool function arguments name description parameters object string",
    "naïve café, 漢字 and 😀; let x = 12 + 345; [INST] hello world [/INST]\n\n  indented\ttext",
] * 10


@dataclass(frozen=True)
class Model:
    assets: PromptAssets
    tokenizer: Tokenizer


def byte_level(cut: Any, specials: list[str], normalizer: Any = None) -> Backend:
    backend = Backend(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(one, normalized=False) for one in specials],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def sentencepiece(normalizer: Any, pre_tokenizer: Any) -> Backend:
    backend = Backend(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizer
    specials = ["<unk>", "<s>", "</s>"]
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[
            *(AddedToken(one, normalized=False) for one in specials),
            *(AddedToken(one, normalized=False) for one in alphabet),
        ],
        show_progress=False,
    )
    # Trained on words: real vocabularies have no tokens across spaces either.
    words = [word for line in CORPUS for word in line.replace(" ", " ▁").split(" ")]
    backend.train_from_iterator(words, trainer)
    raw = json.loads(backend.to_str())
    raw["added_tokens"] = raw["added_tokens"][: len(specials)]  # bytes are no added tokens
    return Backend.from_str(json.dumps(raw))


WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def llama3() -> tuple[Backend, str]:
    return byte_level(pre_tokenizers.Split(Regex(WORDS), "isolated"), HEADERS), LLAMA3


def qwen() -> tuple[Backend, str]:
    cut = pre_tokenizers.Split(Regex(WORDS.replace("{1,3}", "")), "isolated")
    backend = byte_level(cut, CHATML, normalizers.NFC())
    backend.add_tokens(
        [AddedToken(one, normalized=False) for one in ("<tool_call>", "</tool_call>")]
    )
    return backend, QWEN


def mistral() -> tuple[Backend, str]:
    prepended = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return sentencepiece(normalizers.Sequence(prepended), None), MISTRAL


def mistral_first() -> tuple[Backend, str]:
    return sentencepiece(
        None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ), MISTRAL


def smollm2() -> tuple[Backend, str]:
    return byte_level(pre_tokenizers.Digits(individual_digits=True), CHATML), PARTS


MODELS = {one.__name__: one for one in (llama3, qwen, mistral, mistral_first, smollm2)}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory: Path = tmp_path_factory.mktemp(request.param)
    backend, template = MODELS[request.param]()
    backend.save(str(directory / "tokenizer.json"))
    bos = next(iter(backend.get_added_tokens_decoder().values())).content
    bos = "<s>" if bos == "<unk>" else bos
    config = {"bos_token": bos, "eos_token": "</s>", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return Model(load_prompt_assets(directory), Tokenizer.load(directory))


words = st.sampled_from(
    ["the cat sat", " on", " the mat", "hello", " world", "how are you?", " ", "   ", "\n", "\n\n",
     "\t", "1234", "naïve", "e\u0301", "\u0301", "漢字", "😀", "👩\u200d👧", "ﬁ", "▁", "x=1;",
     "</s>", "<|im_end|>", "<|im_start|>user\n", "<s>", "<|eot_id|>", "[INST]", "[/INST]", "<|im_",
     "<0x41>", "<unk>"]
)  # fmt: skip
contents = st.lists(st.one_of(words, st.text(max_size=5)), max_size=8).map("".join)
calls = st.builds(
    lambda text: [
        {
            "type": "function",
            "id": "1",
            "function": {"arguments": json.dumps({"q": text}), "name": "f"},
        }
    ],
    contents,
)
messages = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": contents}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": contents, "tool_calls": calls}),
    st.fixed_dictionaries(
        {
            "role": st.just("user"),
            "content": st.lists(
                contents.map(lambda text: {"type": "text", "text": text}), max_size=3
            ),
        }
    ),
    st.fixed_dictionaries(
        {"role": st.just("tool"), "content": contents, "tool_call_id": st.just("1")}
    ),
)
tool_lists = st.sampled_from(
    [None, [{"type": "function", "function": {"name": "f", "description": "looks é up"}}]]
)
conversations = st.fixed_dictionaries(
    {"messages": st.lists(messages, min_size=1, max_size=6), "tools": tool_lists}
)


def routed(model: Model, request: dict[str, Any]) -> bytes:
    """The prompt's bytes as the router has them."""
    prompt = prompt_bytes(CHAT, view_of(json.dumps(request).encode()), model.assets)
    assert prompt is not None
    return prompt


def tokenised(model: Model, request: dict[str, Any]) -> list[int]:
    """The prompt's tokens as the replica has them."""
    assert model.assets.chat_template is not None
    text = model.assets.chat_template.render(request["messages"], tools=request["tools"])
    return model.tokenizer.encode(text, add_special_tokens=False)


@given(request=conversations)
def test_a_prompts_bytes_are_those_of_its_tokens(model: Model, request: dict[str, Any]) -> None:
    assert model.assets.vocabulary.detokenise(tokenised(model, request)) == routed(model, request)


def blocks(ids: list[int]) -> Iterator[list[int]]:
    return (
        ids[at : at + BLOCK_TOKENS] for at in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS)
    )


@given(
    request=conversations,
    kept=st.integers(min_value=0, max_value=6),
    more=st.lists(messages, min_size=1, max_size=3),
    typed=st.text(max_size=3),
)
@settings(max_examples=100)
def test_the_predicted_match_is_that_of_the_tokens_or_a_block_less_or_more(
    model: Model, request: dict[str, Any], kept: int, more: list[Any], typed: str
) -> None:
    held = tokenised(model, request)
    texts = [model.assets.vocabulary.detokenise(block) for block in blocks(held)]
    assume(texts)
    tree = PrefixTree()
    tree.store("r", (), list(range(1, len(texts) + 1)), None, texts, BLOCK_TOKENS)

    # Another conversation that begins alike, and may differ within a message.
    begun = request["messages"][:kept]
    if begun and typed and isinstance(begun[-1]["content"], str):
        begun = [*begun[:-1], {**begun[-1], "content": begun[-1]["content"] + typed}]
    other = {**request, "messages": [*begun, *more]}
    found = tree.match((), routed(model, other)).confirmed.get("r")

    ids = tokenised(model, other)
    common = 0
    for ours, theirs in zip(blocks(held), blocks(ids[:-1]), strict=False):
        if ours != theirs:
            break
        common += 1
    predicted = 0 if found is None else found.tokens // BLOCK_TOKENS
    assert abs(predicted - common) <= 1
