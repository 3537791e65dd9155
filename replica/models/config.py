"""A model's shape, what its architecture adds to it, and typed reads of what files say."""

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
class Family:
    """What an architecture is beside what its configuration says."""

    qkv_bias: bool = False
    head_norms: bool = False
    has_windows: bool = False
    windows_are_optional: bool = False  # `use_sliding_window` turns them on
    experts: ExpertNames | None = None


FAMILIES = {
    "MistralForCausalLM": Family(has_windows=True),
    "Qwen2ForCausalLM": Family(qkv_bias=True, has_windows=True, windows_are_optional=True),
    "Qwen3ForCausalLM": Family(head_norms=True, has_windows=True, windows_are_optional=True),
    "MixtralForCausalLM": Family(
        has_windows=True,
        experts=ExpertNames(
            router="block_sparse_moe.gate",
            experts="block_sparse_moe.experts",
            gate="w1",
            up="w3",
            down="w2",
        ),
    ),
    "Qwen3MoeForCausalLM": Family(
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


class Reader:
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
