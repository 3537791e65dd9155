"""The mixture of experts in Triton against the reference: few and many tokens, some of the experts.

It needs a GPU or, as `test_interpreter` arranges, TRITON_INTERPRET=1.
"""

import pytest
import torch

from kernels import torch_ops, triton_ops
from tests.kernels.device import DEVICE, needs_a_device
from tests.kernels.guards import Guards

pytestmark = needs_a_device


def inputs(
    guards: Guards, tokens: int, hidden: int, intermediate: int, experts: int
) -> list[torch.Tensor]:
    shapes = [
        (tokens, hidden),
        (tokens, experts),
        (experts, 2 * intermediate, hidden),
        (experts, hidden, intermediate),
    ]
    # Of such a size that rounding stays below the tolerance.
    return [guards.copy((torch.randn(shape) / 3).to(DEVICE)) for shape in shapes]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize(
    ("tokens", "hidden", "intermediate", "experts", "top_k"),
    [
        pytest.param(1, 24, 20, 6, 2, id="one-token"),
        pytest.param(13, 24, 20, 6, 6, id="every-expert"),
        pytest.param(70, 130, 72, 4, 2, id="wider-than-a-tile"),
        pytest.param(200, 64, 65, 3, 2, id="tiles-of-many-rows"),
        pytest.param(5, 64, 64, 1, 1, id="one-expert"),
        pytest.param(3, 17, 5, 33, 4, id="more-experts-than-pairs"),
        pytest.param(0, 16, 16, 4, 2, id="no-token"),
    ],
)
def test_it_equals_the_reference(
    guards: Guards,
    tokens: int,
    hidden: int,
    intermediate: int,
    experts: int,
    top_k: int,
    renormalise: bool,
) -> None:
    given = inputs(guards, tokens, hidden, intermediate, experts)
    expected = torch_ops.moe(*given, top_k, renormalise=renormalise)
    close(triton_ops.moe(*given, top_k, renormalise=renormalise), expected)


def test_all_tokens_may_like_the_same_expert(guards: Guards) -> None:
    x, logits, gate_up, down = inputs(guards, 90, 32, 32, 5)
    logits[:, 3] = 100.0
    expected = torch_ops.moe(x, logits, gate_up, down, 1, renormalise=True)
    close(triton_ops.moe(x, logits, gate_up, down, 1, renormalise=True), expected)


@pytest.mark.parametrize(("first", "end"), [(0, 1), (2, 5), (5, 6)])
def test_a_part_of_the_experts_says_its_part(guards: Guards, first: int, end: int) -> None:
    x, logits, gate_up, down = inputs(guards, 40, 32, 24, 6)
    part = (x, logits, guards.copy(gate_up[first:end]), guards.copy(down[first:end]), 2)
    expected = torch_ops.moe(*part, renormalise=True, first_expert=first)
    close(triton_ops.moe(*part, renormalise=True, first_expert=first), expected)
