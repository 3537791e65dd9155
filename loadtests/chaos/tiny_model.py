"""A tiny random Llama in a Hugging Face directory: quick on a shared core, and as good as exact.

An answer that went on elsewhere is compared with the unbroken one, so greedy must mean one answer.
Floating-point sums depend on the batch, and on whether a token was decoded or came with a prefill;
the replica computes in float32 at best. Here the rows that make the logits are spread so wide that
the best token leads the second by 1.5 on average. Over the 2,630 tokens of the pool's answers its
smallest lead is 5.1e-4 and float32's largest error 2.9e-5 (a test holds the two apart), so every
difference is a fault. A real model (`--model smollm2`) has near ties: cases that are not the same
twice in a quiet replica are left out of the run, but another one may still turn.

The vocabulary is byte-level and the model says words, some bytes of é and € (so that text is held
back until a character is whole) and, seldom, the end of a turn.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

NAME = "tiny"
MAX_MODEL_LEN = 512

_HIDDEN, _HEADS, _KV_HEADS, _INTERMEDIATE, _LAYERS = 64, 8, 2, 96, 3
_VOCABULARY = 512
_SEED = 7
_SPREAD = 0.15
_HEAD_SPREAD = 0.5
# Turns end, but not all before the longest answers do.
_END_SCALE = 0.85
_SPECIAL = ("<|im_start|>", "<|im_end|>")
_BYTES_SAID = "é€".encode()
_TEXT = (
    "the cat sat on a mat while rain fell over old roofs and nobody in town knew why seven small "
    "boats came home without their sails before morning so everyone went down to look at them "
    "user assistant system tell me about rivers mountains bread winter music numbers"
)
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(directory: Path) -> None:
    """The same files each time: configuration, weights, tokenizer, template."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    (directory / "chat_template.jinja").write_text(_TEMPLATE)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _VOCABULARY,
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "bos_token_id": None,
    }
    (directory / "config.json").write_text(json.dumps(config))
    save_file(_weights(_likelihood(tokenizer)), directory / "model.safetensors")


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {word} {word}" for word in _TEXT.split()] * 3, trainer)
    assert tokenizer.get_vocab_size() <= _VOCABULARY
    return tokenizer


def _likelihood(tokenizer: Tokenizer) -> torch.Tensor:
    """[vocabulary], what each token's row is scaled by: 0 is a token that is never said."""
    scale = torch.zeros(_VOCABULARY)
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False)
    said = {character for piece, _ in alphabet.pre_tokenize_str("é€") for character in piece}
    assert len(said) == len(set(_BYTES_SAID))
    for token, token_id in tokenizer.get_vocab().items():
        if token in said or len(token) > 2:
            scale[token_id] = 1.0
    for token in _SPECIAL:
        scale[tokenizer.token_to_id(token)] = 0.0
    scale[tokenizer.token_to_id("<|im_end|>")] = _END_SCALE
    return scale


def _weights(scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """Under Hugging Face's names, float32."""
    random = torch.Generator().manual_seed(_SEED)

    def matrix(rows: int, columns: int, spread: float = _SPREAD) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random) * spread

    head_dim = _HIDDEN // _HEADS
    tensors = {
        "model.embed_tokens.weight": matrix(_VOCABULARY, _HIDDEN),
        "model.norm.weight": torch.ones(_HIDDEN),
        "lm_head.weight": matrix(_VOCABULARY, _HIDDEN, _HEAD_SPREAD) * scale[:, None],
    }
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}."
        tensors |= {
            f"{name}input_layernorm.weight": torch.ones(_HIDDEN),
            f"{name}post_attention_layernorm.weight": torch.ones(_HIDDEN),
            f"{name}self_attn.q_proj.weight": matrix(_HEADS * head_dim, _HIDDEN),
            f"{name}self_attn.k_proj.weight": matrix(_KV_HEADS * head_dim, _HIDDEN),
            f"{name}self_attn.v_proj.weight": matrix(_KV_HEADS * head_dim, _HIDDEN),
            f"{name}self_attn.o_proj.weight": matrix(_HIDDEN, _HEADS * head_dim),
            f"{name}mlp.gate_proj.weight": matrix(_INTERMEDIATE, _HIDDEN),
            f"{name}mlp.up_proj.weight": matrix(_INTERMEDIATE, _HIDDEN),
            f"{name}mlp.down_proj.weight": matrix(_HIDDEN, _INTERMEDIATE),
        }
    return tensors
