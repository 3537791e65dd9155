"""Steps that make every kernel of a model compile: a warm-up of these, and serving compiles none.

Where an operation has several variants, only these numbers of a step choose between them:

    attention, decode     blocks in the table: more than one chunk needs the combining kernel
    attention, prefill    new tokens a sequence, on average: tiles of few rows or of many
    mixture of experts    (token, expert) pairs an expert: the same
    quantised products    tokens: the same
"""

from dataclasses import dataclass

from kernels.triton_ops.attention_items import CHUNK_TOKENS_MIN
from kernels.triton_ops.launch_rules import ROWS_FEW


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Sequences by the new tokens of each, after `prefix_tokens` that are in the cache already.

    One new token is a decode, more are a prefill.
    """

    new_tokens: tuple[int, ...]
    prefix_tokens: int


def warm_up_steps(
    *, step_tokens_max: int, context_tokens_max: int, experts: int = 0, top_k: int = 1
) -> list[Step]:
    """Few and small steps that launch every variant that steps within the limits can need.

    Args:
        step_tokens_max: New tokens of all sequences of a step.
        context_tokens_max: Tokens of one sequence.
        experts, top_k: Of a layer of this replica, and how many of all a token goes through; 0
            experts: no mixture.
    """
    assert step_tokens_max > 0
    assert context_tokens_max > 0
    two_chunks = min(CHUNK_TOKENS_MIN.value + 1, context_tokens_max)
    steps = [Step(new_tokens=(1,), prefix_tokens=two_chunks - 1)]
    # A prefill of few tokens, and one token more than are few for any group of heads and product.
    counts = {2, ROWS_FEW + 1}
    if experts:
        counts.add(ROWS_FEW * experts // top_k + 1)
    for count in sorted(counts):
        if count <= step_tokens_max:
            full, rest = divmod(count, context_tokens_max)
            new_tokens = (context_tokens_max,) * full + ((rest,) if rest else ())
            steps.append(Step(new_tokens=new_tokens, prefix_tokens=0))
    return steps
