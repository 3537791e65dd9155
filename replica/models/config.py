"""A model's shape, as read from its files and checked: whatever we would not honour is an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replica.models.errors import UnsupportedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Rope frequencies slowed for long contexts, as Llama 3.1 does.

    Source: transformers `modeling_rope_utils.py`, `_compute_llama3_parameters`.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: frequency i is theta^(-2i / head_dim), then scaled.

    Attributes:
        theta: The base.
        scaling: Llama 3's rule, or None.
        divisors: What GGUF files carry in its place: a divisor for each frequency,
            [head_dim / 2]; or None.
    """

    theta: float
    scaling: Llama3Scaling | None = None
    divisors: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertNames:
    """How an architecture calls the tensors of a layer's experts; `experts` has one of each."""

    router: str
    experts: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """A mixture of experts.

    Attributes:
        per_token: Of `count`, how many each token takes.
        renormalise: Whether the probabilities of those are made to add up to 1.
        layers: Of each layer, whether it has experts; else it has one MLP.
    """

    count: int
    per_token: int
    intermediate_size: int
    renormalise: bool
    layers: tuple[bool, ...]
    names: ExpertNames

    def __post_init__(self) -> None:
        if self.per_token > self.count:
            raise UnsupportedModel(f"{self.per_token} experts a token, but only {self.count}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of a Llama-like decoder.

    Attributes:
        head_norms: Each query and key is normed by itself before rope turns it.
        windows: Of each layer, how many tokens at most a token attends to, itself included; None:
            all before it.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    max_model_len: int
    tied_embeddings: bool
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModel(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} KV heads"
            )
        if self.head_dim % 2:
            raise UnsupportedModel(f"head_dim {self.head_dim} is odd: rope turns pairs")
        if len(self.windows) != self.num_layers:
            raise UnsupportedModel(f"{len(self.windows)} windows for {self.num_layers} layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What an architecture is beside what its configuration says."""

    qkv_bias: bool = False
    head_norms: bool = False
    has_windows: bool = False
    windows_are_optional: bool = False  # `use_sliding_window` turns them on
    experts: ExpertNames | None = None


_FAMILIES = {
    "MistralForCausalLM": _Family(has_windows=True),
    "Qwen2ForCausalLM": _Family(qkv_bias=True, has_windows=True, windows_are_optional=True),
    "Qwen3ForCausalLM": _Family(head_norms=True, has_windows=True, windows_are_optional=True),
    "MixtralForCausalLM": _Family(
        has_windows=True,
        experts=ExpertNames(
            router="block_sparse_moe.gate",
            experts="block_sparse_moe.experts",
            gate="w1",
            up="w3",
            down="w2",
        ),
    ),
    "Qwen3MoeForCausalLM": _Family(
        head_norms=True,
        has_windows=True,
        windows_are_optional=True,
        experts=ExpertNames(
            router="mlp.gate",
            experts="mlp.experts",
            gate="gate_proj",
            up="up_proj",
            down="down_proj",
        ),
    ),
}


def config_from_huggingface(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """The shape that a config.json states, in the old form or transformers 5's.

    Args:
        raw: The file's content.
        where: The file's name, for errors.

    Raises:
        UnsupportedModel: it asks for something we do not compute, or lacks a needed key.
    """
    reader = _Reader(raw, where)
    architectures = raw.get("architectures") or []
    if len(architectures) != 1:
        raise UnsupportedModel(f"{where}: architectures is {architectures!r}, not a list of one")
    reader.require("hidden_act", ("silu", "swish"), default="silu")
    reader.require("quantization_config", (None,), default=None)
    reader.require("pretraining_tp", (1, None), default=1)
    heads = reader.integer("num_attention_heads")
    hidden = reader.integer("hidden_size")
    head_dim = reader.integer("head_dim", default=hidden // heads)
    architecture = str(architectures[0])
    family = _FAMILIES.get(architecture, _Family())
    bias = bool(raw.get("attention_bias", False))
    layers = reader.integer("num_hidden_layers")
    return ModelConfig(
        architecture=architecture,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=reader.integer("num_key_value_heads", default=heads),
        head_dim=head_dim,
        norm_eps=reader.number("rms_norm_eps", default=1e-6),
        rope=_rope_from_huggingface(reader),
        max_model_len=reader.integer("max_position_embeddings"),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=bias or family.qkv_bias,
        output_bias=bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        head_norms=family.head_norms,
        windows=_windows_from_huggingface(reader, family, layers),
        experts=_experts_from_huggingface(reader, family, layers),
    )


def _experts_from_huggingface(
    reader: "_Reader", family: "_Family", layers: int
) -> ExpertsConfig | None:
    raw = reader.raw
    if family.experts is None:
        return None
    only_one, step = raw.get("mlp_only_layers") or (), reader.integer("decoder_sparse_step", 1)
    dense = reader.integer("intermediate_size")
    return ExpertsConfig(
        # transformers 5 calls it as Mixtral always did.
        count=reader.integer("num_experts" if "num_experts" in raw else "num_local_experts"),
        per_token=reader.integer("num_experts_per_tok"),
        intermediate_size=reader.integer("moe_intermediate_size", default=dense),
        # Mixtral has no word for it: it always does.
        renormalise=bool(raw.get("norm_topk_prob", raw.get("model_type") == "mixtral")),
        layers=tuple(index not in only_one and (index + 1) % step == 0 for index in range(layers)),
        names=family.experts,
    )


def _windows_from_huggingface(
    reader: "_Reader", family: "_Family", layers: int
) -> tuple[int | None, ...]:
    raw = reader.raw
    window = raw.get("sliding_window")
    if window is None or not raw.get("use_sliding_window", not family.windows_are_optional):
        return (None,) * layers
    if not family.has_windows:
        raise UnsupportedModel(f"{reader.where}: sliding_window {window!r} is not supported")
    width = reader.integer("sliding_window")
    kinds = raw.get("layer_types")
    if kinds is None:  # as before transformers 4.53
        full = raw.get("max_window_layers", 0) if family.windows_are_optional else 0
        return (None,) * min(full, layers) + (width,) * max(layers - full, 0)
    known = {"full_attention": None, "sliding_attention": width}
    if len(kinds) != layers or not known.keys() >= set(kinds):
        raise UnsupportedModel(f"{reader.where}: layer_types {kinds!r} are not supported")
    return tuple(known[kind] for kind in kinds)


def _rope_from_huggingface(reader: "_Reader") -> RopeConfig:
    raw, where = reader.raw, reader.where
    # transformers 5 writes rope_parameters; before, rope_theta and rope_scaling stood apart.
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    partial = parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial not in (1.0, None):
        raise UnsupportedModel(f"{where}: partial_rotary_factor {partial} is not supported")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind != "llama3":
        raise UnsupportedModel(
            f"{where}: rope scaling {kind!r} is not supported (default and llama3 are)"
        )
    scaling = _Reader(parameters, f"{where}: rope scaling")
    return RopeConfig(
        theta=theta,
        scaling=Llama3Scaling(
            factor=scaling.number("factor"),
            low_frequency_factor=scaling.number("low_freq_factor"),
            high_frequency_factor=scaling.number("high_freq_factor"),
            original_context=scaling.integer("original_max_position_embeddings"),
        ),
    )


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
    reader = _Reader(keys, f"{where}: {kind}")
    reader.require("rope.scaling.type", ("none",), default="none")
    reader.require("attention.sliding_window", (0,), default=0)
    architecture = _GGUF_ARCHITECTURES[kind]
    if kind == "llama" and keys.get("expert_count", 0) != 0:
        architecture = "MixtralForCausalLM"
    family = _FAMILIES.get(architecture, _Family())
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


def _experts_from_gguf(reader: "_Reader", family: "_Family", layers: int) -> ExpertsConfig | None:
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


class _Reader:
    """Typed reads that name the file and the key when they fail."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UnsupportedModel(
                f"{self.where}: {key} is {value!r}, where a positive integer is needed"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.raw.get(key)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise UnsupportedModel(
                f"{self.where}: {key} is {value!r}, where a positive number is needed"
            )
        return float(value)

    def require(self, key: str, accepted: tuple[Any, ...], default: Any) -> None:
        value = self.raw.get(key, default)
        if value not in accepted:
            raise UnsupportedModel(f"{self.where}: {key} {value!r} is not supported")
