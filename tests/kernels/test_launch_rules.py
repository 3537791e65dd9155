"""The launches that tuning may choose: each makes sense, and those that are looked at compile.

`python -m tests.kernels.launch_cases` compiles all of them for a kind of GPU. Here only some are:
it takes long.
"""

import pytest
import triton

from kernels.ahead import TARGETS
from kernels.launches import Launch, Rule
from kernels.triton_ops.launch_rules import PREFILL
from tests.kernels.launch_cases import KINDS, classes
from tests.kernels.test_ahead import SPILLED_BYTES_MAX, compiling

CLASSES = [
    pytest.param(rule, kind, shape, id=f"{rule.kernel}-{kind}-{shape}")
    for kind in KINDS
    for rule, shape in classes(kind)
]


@pytest.mark.parametrize(("rule", "kind", "shape"), CLASSES)
def test_candidates_are_launches_of_the_kernel_and_there_is_a_choice(
    rule: Rule, kind: str, shape: tuple[int, ...]
) -> None:
    candidates = rule.candidates(kind, *shape)
    assert 2 <= len(candidates) <= 24
    for place, one in enumerate(candidates):
        assert set(one) == set(candidates[0])
        assert one not in candidates[:place]
        assert all(size == triton.next_power_of_2(size) for size in tiles(one)), one
        assert 1 <= one["num_warps"] <= 16
        assert 1 <= one["num_stages"] <= 5
        assert all(size >= 16 for size in tiles(one)), "what tl.dot needs"


def tiles(launch: Launch) -> list[int]:
    return [value for name, value in launch.items() if not name.startswith("num_")]


@pytest.mark.parametrize("group", [1, 5, 16, 17, 48, 100])
def test_rows_of_prefill_hold_a_token_of_any_group(group: int) -> None:
    for kind in KINDS:
        for few in (False, True):
            for one in PREFILL.candidates(kind, 2, 2, 128, 16, group, few):
                assert one["ROWS"] >= group


# The last alternative of one class of each kernel with few rows and with many.
SAMPLE = """
from kernels.ahead import TARGETS, compile_case
from tests.kernels.launch_cases import cases, classes
seen = set()
for rule, shape in classes("sm_90"):
    if (rule.kernel, shape[-1]) not in seen:
        seen.add((rule.kernel, shape[-1]))
        for case in cases(rule, "sm_90", shape, rule.candidates("sm_90", *shape)[-1])[:1]:
            taken = compile_case(case, TARGETS["sm_90"])
            print(rule.kernel, taken.spilled_bytes, taken.shared_bytes)
"""


def test_some_of_them_compile_fit_and_do_not_spill() -> None:
    lines = [line.split() for line in compiling("-c", SAMPLE).splitlines()]
    assert {kernel for kernel, _, _ in lines} == {
        "decode", "prefill", "moe", "matmul_int8", "matmul_fp8", "matmul_int4",
    }  # fmt: skip
    for kernel, spilled_bytes, shared_bytes in lines:
        assert int(spilled_bytes) <= SPILLED_BYTES_MAX, kernel
        assert int(shared_bytes) <= TARGETS["sm_90"].shared_bytes_max, kernel
