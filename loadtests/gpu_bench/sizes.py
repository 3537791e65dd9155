"""How large the cases of `make bench-gpu` are: as models that people serve, or tiny, for tests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts. `name`: the model that has it."""

    name: str
    count: int
    top_k: int
    hidden: int
    intermediate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What each section runs over.

    Attributes:
        heads, kv_heads, head_dim, hidden, intermediate, vocabulary: Of the model.
        tokens: Of the element-wise operations.
        batches, contexts: Of decode attention, each with each.
        ragged: Lengths of one more batch.
        prefills: New tokens and context.
        sampled_rows: Of the sampler and the mask.
        experts, expert_tokens: Of the mixtures, each with each.
        matmul_rows: Of products with quantised weights.
        group: Inputs that share a scale in 4 bits.
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    tokens: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    ragged: tuple[int, ...]
    prefills: tuple[tuple[int, int], ...]
    sampled_rows: tuple[int, ...]
    experts: tuple[Experts, ...]
    expert_tokens: tuple[int, ...]
    matmul_rows: tuple[int, ...]
    group: int


# Llama 3.1 8B. Ragged: a few long conversations among many short ones.
FULL = Sizes(
    heads=32,
    kv_heads=8,
    head_dim=128,
    hidden=4096,
    intermediate=14336,
    vocabulary=128256,
    tokens=(64, 8192),
    batches=(1, 16, 64, 256),
    contexts=(1024, 8192, 32768),
    ragged=(32768, 16384, *[8192 - 61 * row for row in range(14)], *range(40, 2440, 50)),
    prefills=((2048, 2048), (8192, 8192), (32768, 32768), (512, 8192)),
    sampled_rows=(1, 64, 256),
    experts=(
        Experts("Qwen3-30B-A3B", 128, 8, 2048, 768),
        Experts("Mixtral-8x7B", 8, 2, 4096, 14336),
    ),
    expert_tokens=(1, 64, 4096),
    matmul_rows=(1, 16, 64),
    group=128,
)
TINY = Sizes(
    heads=4,
    kv_heads=2,
    head_dim=16,
    hidden=64,
    intermediate=96,
    vocabulary=200,
    tokens=(3,),
    batches=(1, 3),
    contexts=(20,),
    ragged=(1, 50, 17),
    prefills=((20, 20), (5, 20)),
    sampled_rows=(1, 4),
    experts=(Experts("tiny", 4, 2, 64, 32),),
    expert_tokens=(1, 9),
    matmul_rows=(1, 5),
    group=32,
)
