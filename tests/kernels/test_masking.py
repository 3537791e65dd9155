"""A bit for each token: what it forbids is never likely, what it allows is untouched."""

import pytest
import torch

from kernels.torch_ops import logits_mask


def packed(allowed: torch.Tensor) -> torch.Tensor:
    """[rows, vocabulary] bool to [rows, words] int32, bit by bit."""
    rows, vocabulary = allowed.shape
    words = torch.zeros(rows, -(-vocabulary // 32), dtype=torch.int64)
    for row in range(rows):
        for token in range(vocabulary):
            words[row, token // 32] |= int(allowed[row, token]) << (token % 32)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_forbidden_is_minus_infinity_and_the_rest_as_it_was(
    vocabulary: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(1)
    logits = torch.randn(4, vocabulary).to(dtype)
    allowed = torch.rand(4, vocabulary) < 0.5
    allowed[0], allowed[1] = True, False
    expected = logits.masked_fill(~allowed, -torch.inf)
    masks = packed(allowed)
    masks[:, -1] |= -1 << (vocabulary % 32) if vocabulary % 32 else 0  # past the vocabulary
    assert logits_mask(logits, masks) is logits
    assert torch.equal(logits, expected)
