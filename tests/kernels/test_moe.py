"""A mixture of experts is the weighted sum of what each chosen expert says, wherever they are."""

import pytest
import torch

from kernels.torch_ops import moe, silu_mul

TOKENS, HIDDEN, INTERMEDIATE, EXPERTS = 13, 24, 20, 6


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(3)
    return (
        torch.randn(TOKENS, HIDDEN, dtype=dtype),
        torch.randn(TOKENS, EXPERTS, dtype=dtype),
        torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN, dtype=dtype) / 5,
        torch.randn(EXPERTS, HIDDEN, INTERMEDIATE, dtype=dtype) / 5,
    )


def token_by_token(
    x: torch.Tensor,
    logits: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    renormalise: bool,
) -> torch.Tensor:
    rows = []
    for token, row in zip(x, logits.double().softmax(-1), strict=True):
        chosen = sorted(range(EXPERTS), key=lambda expert: -row[expert].item())[:top_k]
        whole = sum(row[expert] for expert in chosen) if renormalise else 1.0
        rows.append(
            sum(
                (row[expert] / whole)
                * (down[expert] @ silu_mul((gate_up[expert] @ token)[None])[0])
                for expert in chosen
            )
        )
    return torch.stack([torch.as_tensor(row) for row in rows])


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_it_is_the_weighted_sum_of_what_the_chosen_say(top_k: int, renormalise: bool) -> None:
    x, logits, gate_up, down = inputs(torch.float64)
    expected = token_by_token(x, logits, gate_up, down, top_k, renormalise)
    got = moe(x, logits, gate_up, down, top_k, renormalise=renormalise)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # summed in fp32


def test_experts_in_several_places_add_up_to_all() -> None:
    x, logits, gate_up, down = inputs()
    whole = moe(x, logits, gate_up, down, 2, renormalise=True)
    parts = [
        moe(x, logits, gate_up[first:end], down[first:end], 2, renormalise=True, first_expert=first)
        for first, end in ((0, 1), (1, 4), (4, EXPERTS))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_no_tokens_are_no_work() -> None:
    x, logits, gate_up, down = inputs()
    assert moe(x[:0], logits[:0], gate_up, down, 2, renormalise=True).shape == (0, HIDDEN)
