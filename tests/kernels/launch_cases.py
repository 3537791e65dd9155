"""Every launch that tuning may choose, as something to compile ahead of time.

`python -m tests.kernels.launch_cases KIND` compiles all for "sm_80", "sm_90" or "gfx942", which
takes long, and prints those that spill or do not fit.
"""

import sys
from collections.abc import Iterator

from kernels.ahead import TARGETS, Case, compile_case
from kernels.launches import Launch, Rule, using
from kernels.triton_ops import attention_decode_cases, attention_prefill_cases, quantised
from kernels.triton_ops.launch_rules import (
    DECODE,
    MATMUL_INT4,
    MATMUL_INT8,
    MOE,
    PREFILL,
    RULES,
)
from kernels.triton_ops.moe import _cases as moe_cases

KINDS = ("sm_80", "sm_90", "gfx942")
_HEADS = ((64, 3), (64, 4), (128, 1), (128, 4), (128, 8), (256, 8))  # head_dim, group
_EXPERTS = ((4096, 14336, 8), (2048, 768, 128))


def classes(kind: str) -> Iterator[tuple[Rule, tuple[int, ...]]]:
    """Classes of shapes of common models, in 16-bit numbers."""
    for head_dim, group in _HEADS:
        yield DECODE, (2, 2, head_dim, 16, group)
        for few in (False, True):
            yield PREFILL, (2, 2, head_dim, 16, group, few)
    for few in (False, True):
        for experts in _EXPERTS:
            yield MOE, (2, *experts, few)
        linear = (2, quantised._INNER, quantised._COLUMNS)
        yield MATMUL_INT8, (*linear, few)
        if kind == "sm_90":
            yield RULES["matmul_fp8"], (*linear, few)
        for half in (16, 64):
            yield MATMUL_INT4, (*linear, half, few)


def cases(rule: Rule, kind: str, shape: tuple[int, ...], launch: Launch) -> list[Case]:
    """What the rule's operation compiles for the class, launched like this."""
    # Products, and decode on NVIDIA's, have one case for several kinds of GPU: sm_90's.
    alike = rule is not PREFILL and (rule is not DECODE or kind == "sm_80")
    with using({rule.key("sm_90" if alike else kind, *shape): launch}):
        if rule is DECODE:
            _, _, head_dim, block_size, group = shape
            return [
                attention_decode_cases._decode_case(
                    "bf16", head_dim, block_size, group, limited, kind == "gfx942"
                )
                for limited in (False, True)
            ]
        if rule is PREFILL:
            _, _, head_dim, block_size, group, few = shape
            return [
                attention_prefill_cases._case("bf16", head_dim, block_size, group, False, few, kind)
            ]
        if rule is MOE:
            _, hidden, intermediate, experts, few = shape
            return moe_cases("bf16", experts, hidden, intermediate, few)
        made = quantised._cases("bf16", shape[-1])
        half = shape[3] if rule is MATMUL_INT4 else None
        return [
            one
            for one in made
            if one.name.startswith(rule.kernel) and one.constants.get("HALF") == half
        ]


def main(kind: str) -> None:
    target = TARGETS[kind]
    for rule, shape in classes(kind):
        for launch in rule.candidates(kind, *shape):
            for case in cases(rule, kind, shape, launch):
                taken = compile_case(case, target)
                if taken.spilled_bytes or taken.shared_bytes > target.shared_bytes_max:
                    print(case.name, dict(launch), taken, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
