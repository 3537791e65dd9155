"""A mixture of experts: each token through the few gated MLPs that its router likes best."""

import torch
from torch.nn.functional import linear

from kernels.torch_ops.activation import silu_mul


def moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    *,
    renormalise: bool,
    first_expert: int = 0,
) -> torch.Tensor:
    """Σ over a token's top_k experts of p(expert) · down · silu_mul(gate_up · x).

    Only the experts given here take part: several places that hold some each add up to all.

    Args:
        x: [tokens, hidden].
        router_logits: [tokens, all experts], any float dtype.
        gate_up: [experts, 2 · intermediate, hidden], gate first, of the experts from
            `first_expert` on.
        down: [experts, hidden, intermediate].
        top_k: Experts a token.
        renormalise: Whether the probabilities of the chosen ones are made to add up to 1.

    Returns:
        [tokens, hidden] in x's dtype; probabilities and the sum in fp32.

    Source: Shazeer et al. 2017, arXiv:1701.06538; Jiang et al. 2024, arXiv:2401.04088, §2.1.
    """
    tokens, hidden = x.shape
    experts = len(gate_up)
    assert down.shape == (experts, hidden, gate_up.shape[1] // 2)
    assert router_logits.shape[0] == tokens
    assert 0 < top_k <= router_logits.shape[1]
    assert 0 <= first_expert <= router_logits.shape[1] - experts
    weights, chosen = router_logits.float().softmax(dim=-1).topk(top_k, dim=-1)
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    out = torch.zeros(tokens, hidden, dtype=torch.float32, device=x.device)
    for expert in range(experts):
        rows, places = (chosen == first_expert + expert).nonzero(as_tuple=True)
        if len(rows) == 0:
            continue
        said = linear(silu_mul(linear(x[rows], gate_up[expert])), down[expert])
        out.index_add_(0, rows, said.float() * weights[rows, places].unsqueeze(1))
    return out.to(x.dtype)
