"""Sampling draws from the distribution it is asked for, and the same again for the same seed."""

import pytest
import torch

from kernels import torch_ops as ops

VOCABULARY = 300
DRAWS = 4000


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def draw(
    logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seeds: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token of each row; rows differ in position unless told otherwise."""
    rows, vocabulary = logits.shape
    return ops.sample(
        logits,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k or vocabulary),
        torch.full((rows,), top_p),
        torch.full((rows,), min_p),
        torch.zeros(rows, dtype=torch.int64) if seeds is None else seeds,
        torch.arange(rows) if positions is None else positions,
    )


def assert_drawn_from(tokens: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Chi-square of the counts, rare tokens pooled: within 5 sigma of its mean; none impossible."""
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    assert (counts[probabilities == 0] == 0).all()
    expected = probabilities.double() * len(tokens)
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]).clamp(min=1e-9)
    bins = int((wanted > 1e-6).sum())
    chi_square = ((observed - wanted).square() / wanted)[wanted > 1e-6].sum().item()
    assert chi_square < bins + 5 * (2 * bins) ** 0.5


def filtered(logits: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return logits.double().masked_fill(~kept, -torch.inf).softmax(0)


@pytest.fixture
def row() -> torch.Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(5)) * 2


def test_temperature_zero_takes_the_likeliest_and_the_first_of_equals(row: torch.Tensor) -> None:
    logits = row.repeat(3, 1)
    logits[1, 7] = logits[1, 250] = 99
    best = int(row.argmax())
    assert draw(logits, temperature=0.0).tolist() == [best, 7, best]


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-40, 1e-44])
def test_a_temperature_near_zero_takes_the_likeliest(row: torch.Tensor, temperature: float) -> None:
    logits = torch.stack([row, row + 100, row - 100, row * 1e4])
    best = [int(row.argmax())] * 4
    assert draw(logits, temperature=temperature).tolist() == best
    assert draw(logits, temperature=temperature, top_p=0.5, min_p=0.1).tolist() == best


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_a_temperature(row: torch.Tensor, temperature: float) -> None:
    tokens = draw(row.repeat(DRAWS, 1), temperature=temperature)
    assert_drawn_from(tokens, (row.double() / temperature).softmax(0))


def test_different_seeds_draw_independently(row: torch.Tensor) -> None:
    same_position = torch.full((DRAWS,), 17)
    tokens = draw(row.repeat(DRAWS, 1), seeds=torch.arange(DRAWS), positions=same_position)
    assert_drawn_from(tokens, row.double().softmax(0))


@pytest.mark.parametrize("top_k", [1, 2, 50])
def test_top_k_keeps_the_likeliest_k(row: torch.Tensor, top_k: int) -> None:
    kept = row >= row.topk(top_k).values[-1]
    assert_drawn_from(draw(row.repeat(DRAWS, 1), top_k=top_k), filtered(row, kept))


def nucleus(row: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of tokens of mass `top_p`, by sorting."""
    probabilities, order = row.double().softmax(0).sort(descending=True)
    kept = torch.zeros_like(row, dtype=torch.bool)
    kept[order[probabilities.cumsum(0) - probabilities < top_p]] = True
    return kept


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_of_that_mass(row: torch.Tensor, top_p: float) -> None:
    tokens = draw(row.repeat(DRAWS, 1), top_p=top_p)
    assert_drawn_from(tokens, filtered(row, nucleus(row, top_p)))


def test_a_nucleus_longer_than_the_short_list_is_whole() -> None:
    flat = torch.randn(5000, generator=torch.Generator().manual_seed(6)) * 0.1
    kept = nucleus(flat, 0.9)
    assert kept.sum() > 4000
    tokens = draw(flat.repeat(500, 1), top_p=0.9)
    assert kept[tokens].all()
    ranks = (flat[None, :] > flat[tokens][:, None]).sum(1)
    assert ranks.max() > 3000  # from all over the nucleus, not only its head


@pytest.mark.parametrize("min_p", [0.02, 0.5, 0.99])
def test_min_p_keeps_tokens_that_likely_beside_the_best(row: torch.Tensor, min_p: float) -> None:
    probabilities = row.double().softmax(0)
    kept = probabilities >= min_p * probabilities.max()
    assert_drawn_from(draw(row.repeat(DRAWS, 1), min_p=min_p), filtered(row, kept))


def test_filters_join_in_order(row: torch.Tensor) -> None:
    kept = row >= row.topk(20).values[-1]
    limited = row.masked_fill(~kept, -torch.inf)
    kept &= nucleus(limited, 0.8)
    tokens = draw(row.repeat(DRAWS, 1), top_k=20, top_p=0.8)
    assert_drawn_from(tokens, filtered(row, kept))


def test_a_draw_depends_on_nothing_but_its_own_row() -> None:
    torch.manual_seed(3)
    rows = 24
    logits = torch.randn(rows, 2000) * 3
    arguments = (
        torch.tensor([0.0, 0.7, 1.0, 1.5]).repeat(6),
        torch.tensor([2000, 40, 2000]).repeat(8),
        torch.tensor([1.0, 0.9]).repeat(12),
        torch.tensor([0.0, 0.0, 0.05]).repeat(8),
        torch.randint(-(2**63), 2**63 - 1, (rows,)),
        torch.randint(0, 100_000, (rows,)),
    )
    together = ops.sample(logits, *arguments)
    shuffled = torch.randperm(rows)
    assert torch.equal(
        ops.sample(logits[shuffled], *(one[shuffled] for one in arguments)), together[shuffled]
    )
    for row in range(rows):
        alone = ops.sample(logits[row : row + 1], *(one[row : row + 1] for one in arguments))
        assert alone[0] == together[row]


def test_the_arguments_are_left_as_they_were(row: torch.Tensor) -> None:
    logits = row.repeat(4, 1)
    draw(logits, top_k=5, top_p=0.5, min_p=0.1)
    assert torch.equal(logits, row.repeat(4, 1))
