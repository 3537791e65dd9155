"""How large the cases of `make bench-gpu` are: as models that people serve, or tiny, for tests."""

from dataclasses import dataclass

from loadtests.gpu_bench.models import LLAMA_1B, LLAMA_8B, QWEN_30B, TINY_DENSE, NamedModel


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts. `name`: the model that has it."""

    name: str
    count: int
    top_k: int
    hidden: int
    intermediate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeModels:
    """What is measured of each model.

    Attributes:
        batches: Of steps of decodes, all of `context` tokens.
        steps: So many are timed.
        concurrent, requests, prompt, answer: Of the throughput: so many sequences at a time, so
            many in all, so many tokens each.
        prefix, question: Tokens that are cached before, and not, when the first token is awaited.
        rival_batch: transformers gets so many prompts at once, beside one at a time.
        cpu_blocks: Of the KV cache where no GPU's memory says how many.
    """

    models: tuple[NamedModel, ...]
    batches: tuple[int, ...]
    context: int
    steps: int
    concurrent: int
    requests: int
    prompt: int
    answer: int
    prefix: int
    question: int
    batched_tokens: int
    rival_batch: int
    cpu_blocks: int = 64


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
        whole_models: End to end.
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
    whole_models: WholeModels


_FULL_MODELS = WholeModels(
    models=(LLAMA_1B, LLAMA_8B, QWEN_30B),
    batches=(1, 64, 256),
    context=1024,
    steps=64,
    concurrent=256,
    requests=512,
    prompt=512,
    answer=128,
    prefix=4096,
    question=64,
    batched_tokens=8192,
    rival_batch=64,
)
_TINY_MODELS = WholeModels(
    models=(TINY_DENSE,),
    batches=(1, 3),
    context=10,
    steps=4,
    concurrent=3,
    requests=5,
    prompt=9,
    answer=4,
    prefix=32,
    question=5,
    batched_tokens=64,
    rival_batch=2,
)

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
    whole_models=_FULL_MODELS,
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
    whole_models=_TINY_MODELS,
)
