"""Cases of matrix products: mixtures of experts, and weights of 8 and 4 bits."""

from collections.abc import Iterator

import torch
from torch.nn.functional import linear, silu

from kernels import floors
from loadtests.gpu_bench.case import Arguments, Case, Run, random
from loadtests.gpu_bench.sizes import Experts, Sizes


def moe_cases(sizes: Sizes) -> Iterator[Case]:
    for model in sizes.experts:
        for tokens in sizes.expert_tokens:
            yield moe(tokens, model)


def moe(tokens: int, model: Experts) -> Case:
    hidden, intermediate = model.hidden, model.intermediate

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        # All different, so that the choice does not depend on how ties are broken.
        order = torch.rand(tokens, model.count, device=device).argsort(dim=-1)
        return {
            "x": random(tokens, hidden)(dtype, device),
            "router_logits": (order * (4 / model.count)).to(dtype),
            "gate_up": random(model.count, 2 * intermediate, hidden)(dtype, device).mul_(
                hidden**-0.5
            ),
            "down": random(model.count, hidden, intermediate)(dtype, device).mul_(
                intermediate**-0.5
            ),
            "top_k": model.top_k,
            "renormalise": True,
        }

    shape = f"{tokens:,} tokens, {model.top_k} of {model.count} ({model.name})"
    work = floors.moe(tokens, model.top_k, model.count, hidden, intermediate)
    return Case("moe", shape, work, make, rivals={"loop over experts": _loop})


def _loop(given: Arguments) -> Run:
    """One dense product after the other; who goes where is known before it is timed."""
    x, gate_up, down = given["x"], given["gate_up"], given["down"]
    weights, chosen = given["router_logits"].float().softmax(-1).topk(given["top_k"], dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    taken = []
    for expert in range(len(gate_up)):
        rows, places = (chosen == expert).nonzero(as_tuple=True)
        if len(rows):
            taken.append((expert, rows, weights[rows, places].unsqueeze(1)))

    def run() -> torch.Tensor:
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert, rows, weight in taken:
            gate, up = linear(x[rows], gate_up[expert]).chunk(2, dim=-1)
            out.index_add_(0, rows, linear(silu(gate).mul_(up), down[expert]) * weight)
        return out.to(x.dtype)

    return run


def quantised_cases(sizes: Sizes) -> Iterator[Case]:
    """The first product of an MLP."""
    for rows in sizes.matmul_rows:
        for operation in ("matmul_int8", "matmul_int4", "matmul_fp8"):
            yield matmul(operation, rows, sizes.hidden, sizes.intermediate, sizes.group)


def matmul(operation: str, rows: int, inner: int, columns: int, group: int) -> Case:
    """`group`: inputs that share a scale, of 4 bits."""
    groups = inner // group

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        x = random(rows, inner)(dtype, device)
        if operation == "matmul_int4":
            return {
                "x": x,
                "weight": _whole(0, 256, (columns, inner // 2), torch.uint8, device),
                "scales": torch.rand(columns, groups, device=device),
                "zeros": _whole(0, 16, (columns, groups), torch.uint8, device),
            }
        weight = _whole(-128, 128, (columns, inner), torch.int8, device)
        if operation == "matmul_fp8":
            weight = weight.to(torch.float8_e4m3fn)
        return {"x": x, "weight": weight, "scales": torch.rand(columns, device=device)}

    int4 = operation == "matmul_int4"
    bits, scale_bytes = (4, 5 * columns * groups) if int4 else (8, 4 * columns)
    work = floors.quantised_matmul(rows, inner, columns, bits, scale_bytes)
    return Case(operation, f"{rows} × {inner:,} × {columns:,}", work, make,
                rivals={"bf16 linear": _dense})  # fmt: skip


def _whole(
    low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    return torch.randint(low, high, shape, dtype=dtype, device=device)


def _dense(given: Arguments) -> Run:
    """A weight of the same shape in the activations' dtype."""
    x = given["x"]
    weight = torch.randn(len(given["scales"]), x.shape[1], dtype=x.dtype, device=x.device)
    return lambda: linear(x, weight)
