"""The sampling kernel draws what the reference draws, and never runs on without an end."""

import math
from collections.abc import Iterator

import pytest
import torch
import triton
import triton.language as tl

from kernels import torch_ops, triton_ops
from kernels.torch_ops import sampling as reference_sampling
from kernels.triton_ops.sampling import _gumbel, _key
from tests.kernels.device import DEVICE, needs_a_device
from tests.kernels.guards import Guards

pytestmark = [
    needs_a_device,
    # Hashes wrap around; distances of the impossible are infinite.
    pytest.mark.filterwarnings("ignore:(overflow|divide by zero|invalid value) encountered"),
]


@triton.jit
def noise_kernel(out, seeds, positions, BLOCK: tl.constexpr):
    low, high = _key(tl.load(seeds), tl.load(positions))
    ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + ids, _gumbel(ids, low, high))


@pytest.fixture
def guards() -> Iterator[Guards]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = Guards()
    yield made
    made.check()


def parameters(rows: int, vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Every filter in every state beside every other's, as 20 rows have them, and in 35 rows beside
    every temperature, too."""

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


FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("rows", "vocabulary", "dtype"),
    [(0, 5, FP32), (3, 1, FP32), (30, 2, BF16), (35, 300, FP32), (20, 300, BF16), (9, 20001, FP32)],
    ids=str,
)
def test_it_picks_what_the_reference_picks(
    guards: Guards, rows: int, vocabulary: int, dtype: torch.dtype
) -> None:
    logits = (torch.randn(rows, vocabulary) * 3).to(dtype)
    mine, reference = both(guards, logits, *parameters(rows, vocabulary))
    assert mine == reference


@pytest.mark.parametrize("levels", [2, 7])
def test_it_keeps_the_ties_that_the_reference_keeps(guards: Guards, levels: int) -> None:
    logits = torch.randint(0, levels, (20, 97)).float() * 0.7
    mine, reference = both(guards, logits, *parameters(20, 97))
    assert mine == reference


def test_of_ties_in_the_last_rank_only_so_many_as_fit_count_for_the_nucleus(guards: Guards) -> None:
    """Kept by rank: masses 1 and 0.37 of 1, 0.37, 0.37, 0.37; the second begins at 0.73 of both."""
    rows = 20
    logits = torch.tensor([1.0, 2.0, 1.0, 1.0]).repeat(rows, 1)
    ones = torch.ones(rows)
    top_p = torch.tensor([0.8, 0.65]).repeat(rows // 2)
    seeds = torch.arange(rows)
    mine, reference = both(guards, logits, ones, ones.long() * 2, top_p, ones * 0, seeds, seeds)
    assert mine == reference
    assert set(mine[::2]) == {0, 1, 2, 3}
    assert set(mine[1::2]) == {1}


def test_impossible_tokens_are_never_picked(guards: Guards) -> None:
    logits = torch.randn(35, 50)
    logits[:, 1:].masked_fill_(torch.rand(35, 49) < 0.9, -torch.inf)
    mine, reference = both(guards, logits, *parameters(35, 50))
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


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (-1, 5), (2**62 + 7, 2**40)])
def test_the_noise_is_the_references_to_the_last_digits(seed: int, position: int) -> None:
    """Where the exponential is small and the token likely to win, too: u goes down to 1e-5 here."""
    seeds, positions = (torch.tensor([one], device=DEVICE) for one in (seed, position))
    out = torch.empty(1 << 16, device=DEVICE)
    noise_kernel[(16,)](out, seeds, positions, BLOCK=1 << 12)
    expected = reference_sampling._gumbel(seeds, positions, len(out))[0]
    # Of the exponential, relatively.
    torch.testing.assert_close((-out).exp(), (-expected).exp(), rtol=2e-6, atol=0)
