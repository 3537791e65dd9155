"""The sampling kernel draws what the reference draws, and never runs on without an end."""

import math
import os
from collections.abc import Iterator

import pytest
import torch

from kernels import torch_ops, triton_ops
from tests.kernels.guards import Guards

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
pytestmark = [
    pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="test_interpreter runs this"),
    # Hashes wrap around; distances of the impossible are infinite.
    pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value) encountered"),
]


@pytest.fixture
def guards() -> Iterator[Guards]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = Guards()
    yield made
    made.check()


def parameters(rows: int, vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Every filter in every state beside every other, in rows of any temperature."""

    def cycle(values: list[float]) -> torch.Tensor:
        return torch.tensor([values[row % len(values)] for row in range(rows)])

    ranks = [max(1, min(rank, vocabulary)) for rank in (vocabulary, 40, 3, vocabulary // 2)]
    return (
        cycle([0.8, 1.0, 1.7, 0.0, 1e-40, 0.1, 30.0]),
        cycle(ranks).long(),
        cycle([1.0, 0.9, 0.35, 0.999, 1e-6]),
        cycle([0.0, 0.05, 0.0]),
        torch.randint(-(2**63), 2**63 - 1, (rows,)),
        torch.randint(0, 2**40, (rows,)),
    )


def both(guards: Guards, logits: torch.Tensor, *arguments: torch.Tensor) -> list[list[int]]:
    """What the kernel picks and what the reference does."""
    guarded = guards.copy(logits.to(DEVICE))
    given = [one.to(DEVICE) for one in arguments]
    mine = triton_ops.sample(guarded, *given)
    assert mine.dtype == torch.int64
    return [mine.tolist(), torch_ops.sample(logits, *arguments).tolist()]


@pytest.mark.parametrize(("rows", "vocabulary"), [(0, 5), (3, 1), (30, 2), (84, 300), (12, 20001)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_picks_what_the_reference_picks(
    guards: Guards, rows: int, vocabulary: int, dtype: torch.dtype
) -> None:
    logits = (torch.randn(rows, vocabulary) * 3).to(dtype)
    mine, reference = both(guards, logits, *parameters(rows, vocabulary))
    assert mine == reference


@pytest.mark.parametrize("levels", [2, 7])
def test_it_keeps_the_ties_that_the_reference_keeps(guards: Guards, levels: int) -> None:
    logits = torch.randint(0, levels, (60, 97)).float() * 0.7
    mine, reference = both(guards, logits, *parameters(60, 97))
    assert mine == reference


def test_impossible_tokens_are_never_picked(guards: Guards) -> None:
    logits = torch.randn(60, 50)
    logits[:, 1:].masked_fill_(torch.rand(60, 49) < 0.9, -torch.inf)
    mine, reference = both(guards, logits, *parameters(60, 50))
    assert mine == reference
    assert logits.gather(1, torch.tensor(mine).unsqueeze(1)).isfinite().all()


def test_what_is_not_a_number_ends_in_some_token(guards: Guards) -> None:
    logits = torch.randn(40, 50)
    logits[:, ::7] = math.nan
    logits[20:] = math.nan
    logits = guards.copy(logits.to(DEVICE))
    given = [one.to(DEVICE) for one in parameters(40, 50)]
    picked = triton_ops.sample(logits, *given)
    assert ((picked >= 0) & (picked < 50)).all()


def test_a_filter_that_refuses_nearly_every_draw_ends_all_the_same(guards: Guards) -> None:
    logits = torch.randn(4, 5000) * 1e-3
    rows = torch.ones(4)
    arguments = (rows, rows.long(), rows, rows * 0, torch.arange(4), torch.arange(4))
    mine, reference = both(guards, logits, *arguments)
    assert mine == reference == logits.argmax(1).tolist()
