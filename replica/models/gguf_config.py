"""A model's shape from a GGUF file's metadata: what we would not honour is an error."""

from collections.abc import Mapping
from typing import Any

from replica.models.config import (
    FAMILIES,
    ExpertsConfig,
    Family,
    ModelConfig,
    Reader,
    RopeConfig,
)
from replica.models.errors import UnsupportedModel

# GGUF's general.architecture to the name that transformers gives the same network.
_GGUF_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
}


def config_from_gguf(
    metadata: Mapping[str, Any],
    *,
    vocab_size: int,
    tied_embeddings: bool,
    biases: frozenset[str],
    rope_divisors: tuple[float, ...] | None,
    where: str,
) -> ModelConfig:
    """The shape that a GGUF file's metadata states.

    Args:
        metadata: Its key-value pairs.
        vocab_size: Rows of its embedding.
        tied_embeddings: Whether it has no output matrix of its own.
        biases: Which of "qkv", "output", "mlp" have bias tensors in the file.
        rope_divisors: Its tensor rope_freqs.weight.
        where: The file's name, for errors.

    Raises:
        UnsupportedModel: it asks for something we do not compute, or lacks a needed key.
    """
    kind = metadata.get("general.architecture")
    if kind not in _GGUF_ARCHITECTURES:
        raise UnsupportedModel(
            f"{where}: general.architecture {kind!r} is not supported "
            f"({', '.join(_GGUF_ARCHITECTURES)} are)"
        )
    prefix = f"{kind}."
    keys = {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}
    reader = Reader(keys, f"{where}: {kind}")
    reader.require("rope.scaling.type", ("none",), default="none")
    reader.require("attention.sliding_window", (0,), default=0)
    architecture = _GGUF_ARCHITECTURES[kind]
    if kind == "llama" and keys.get("expert_count", 0) != 0:
        architecture = "MixtralForCausalLM"
    family = FAMILIES.get(architecture, Family())
    heads, hidden = reader.integer("attention.head_count"), reader.integer("embedding_length")
    layers = reader.integer("block_count")
    head_dim = reader.integer("attention.key_length", default=hidden // heads)
    reader.require("attention.value_length", (head_dim,), default=head_dim)
    reader.require("rope.dimension_count", (head_dim,), default=head_dim)
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=reader.integer("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=reader.integer("attention.head_count_kv", default=heads),
        head_dim=head_dim,
        norm_eps=reader.number("attention.layer_norm_rms_epsilon"),
        rope=RopeConfig(
            theta=reader.number("rope.freq_base", default=10000.0), divisors=rope_divisors
        ),
        max_model_len=reader.integer("context_length"),
        tied_embeddings=tied_embeddings,
        qkv_bias="qkv" in biases,
        output_bias="output" in biases,
        mlp_bias="mlp" in biases,
        head_norms=family.head_norms,
        windows=(None,) * layers,
        experts=_experts_from_gguf(reader, family, layers),
    )


def _experts_from_gguf(reader: Reader, family: Family, layers: int) -> ExpertsConfig | None:
    """llama.cpp gives all layers of such a model experts, and renormalises in all of these models.

    Source: llama.cpp `llama-model.cpp` and `models/qwen3moe.cpp`, the calls of `build_moe_ffn`.
    """
    if family.experts is None:
        reader.require("expert_count", (0,), default=0)
        return None
    reader.require("expert_shared_count", (0,), default=0)
    reader.require("expert_group_count", (0, 1), default=0)
    reader.require("expert_weights_norm", (True,), default=True)
    reader.require("expert_weights_scale", (0.0, 1.0), default=0.0)
    reader.require("expert_gating_func", (0, 1), default=0)  # none said, or softmax
    # Mixtral's files have one size for experts and MLPs.
    dense = reader.integer("feed_forward_length")
    return ExpertsConfig(
        count=reader.integer("expert_count"),
        per_token=reader.integer("expert_used_count"),
        intermediate_size=reader.integer("expert_feed_forward_length", default=dense),
        renormalise=True,
        layers=(True,) * layers,
        names=family.experts,
    )
