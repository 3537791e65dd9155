"""Models that people serve, with random weights: their time does not depend on what they say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kernels import floors
from kernels.floors import Work
from kernels.operations import Operations
from replica.models.config import FAMILIES, ExpertsConfig, ModelConfig, RopeConfig
from replica.models.registry import Model, architecture
from replica.parallel.shard import WHOLE

_WEIGHT_BYTES = 2  # bf16
_SCALE = 0.02  # of weights, as models are initialised


@dataclass(frozen=True, slots=True)
class NamedModel:
    name: str
    config: ModelConfig


def _config(layers: int, **shape: object) -> ModelConfig:
    fixed = {"norm_eps": 1e-5, "rope": RopeConfig(theta=500000.0), "max_model_len": 8192}
    return ModelConfig(num_layers=layers, windows=(None,) * layers, **fixed, **shape)  # type: ignore[arg-type]


LLAMA_1B = NamedModel(
    "Llama-3.2-1B",
    _config(
        16,
        architecture="LlamaForCausalLM",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        tied_embeddings=True,
    ),
)
LLAMA_8B = NamedModel(
    "Llama-3.1-8B",
    _config(
        32,
        architecture="LlamaForCausalLM",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        tied_embeddings=False,
    ),
)
_QWEN_EXPERTS = FAMILIES["Qwen3MoeForCausalLM"].experts
assert _QWEN_EXPERTS is not None
QWEN_30B = NamedModel(
    "Qwen3-30B-A3B",
    _config(
        48,
        architecture="Qwen3MoeForCausalLM",
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_heads=32,
        num_kv_heads=4,
        head_dim=128,
        tied_embeddings=False,
        head_norms=True,
        experts=ExpertsConfig(
            count=128,
            per_token=8,
            intermediate_size=768,
            renormalise=True,
            layers=(True,) * 48,
            names=_QWEN_EXPERTS,
        ),
    ),
)
TINY_DENSE = NamedModel(
    "tiny",
    replace(
        LLAMA_1B.config,
        num_layers=2,
        windows=(None,) * 2,
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_model_len=128,
    ),
)


def random_model(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, ops: Operations
) -> Model:
    """A network of this shape that says nothing sensible."""
    built = architecture(config.architecture)
    shapes = built.tensor_shapes(config)

    def read(name: str, *, rows: range | None = None, columns: range | None = None) -> torch.Tensor:
        shape = list(shapes[name])
        shape[0] = shape[0] if rows is None else len(rows)
        shape[-1] = shape[-1] if columns is None else len(columns)
        made = torch.randn(shape, dtype=dtype, device=device).mul_(_SCALE)
        return made.add_(1) if name.endswith("norm.weight") else made

    with torch.inference_mode():
        return built.build(config, read, device, ops, {}, WHOLE)


def decode_work(config: ModelConfig, contexts: Sequence[int]) -> Work:
    """What a step of one new token a sequence must move and compute at least.

    Every weight is read once, of an embedding only the rows in question, and of a mixture the
    experts that are taken: as many as evenly drawn ones are on average.
    """
    tokens, hidden = len(contexts), config.hidden_size
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    layer = floors.matmul(tokens, hidden, heads)
    layer += floors.matmul(tokens, config.num_heads * config.head_dim, hidden)
    layer += floors.paged_attention_decode(
        contexts, config.num_heads, config.num_kv_heads, config.head_dim
    )
    layer += _mlp_work(config, tokens)
    total = floors.matmul(tokens, hidden, config.vocab_size)
    for _ in range(config.num_layers):
        total += layer
    return total


def _mlp_work(config: ModelConfig, tokens: int) -> Work:
    hidden, experts = config.hidden_size, config.experts
    if experts is None:
        wide = config.intermediate_size
        return floors.matmul(tokens, hidden, 2 * wide) + floors.matmul(tokens, wide, hidden)
    untouched = (1 - experts.per_token / experts.count) ** tokens
    read = experts.count * (1 - untouched) * 3 * hidden * experts.intermediate_size
    computed = 6 * tokens * experts.per_token * hidden * experts.intermediate_size
    return Work(read * _WEIGHT_BYTES, computed) + floors.matmul(tokens, hidden, experts.count)
