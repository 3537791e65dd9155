"""A mixture of experts as two grouped matrix products over (token, expert) pairs sorted by expert.

    pairs by expert   e0 e0 e0 e2 | e2 e2 . . |       tiles of BLOCK_M rows, each of one expert:
    tiles             [ 0 0 0 . ] [ 2 2 2 . ]         an expert's last tile has empty rows

 1. Route: softmax and top_k of the router's logits, one pair for each token and chosen expert.
 2. Align: sort the pairs by expert and count them, on the device. How many tiles there are only
    the device knows: the grid is what there can be at most, and programs beyond return at once.
 3. gate · up of each tile's rows and one expert's weights; silu(gate) · up goes into a buffer in
    the sorted order.
 4. down of that, times the pair's probability, into the pair's own row.
 5. Combine: the sum over each token's pairs. Nothing is added atomically, so that the same input
    gives the same output.

Sources: as `kernels.torch_ops.moe`; Gale et al. 2022, arXiv:2211.15841 (block-sparse products
over tokens sorted by expert).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.ahead import Case
from kernels.triton_ops.launch_rules import MOE, ROWS_FEW, kind


@triton.jit
def _tile(
    tile, ends_ptr, blocks_ptr, starts_ptr, counts_ptr, experts,
    BLOCK_M: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """The tile's expert, its rows in the sorted order, and which of them there are."""
    ids = tl.arange(0, EXPERTS)
    ends = tl.load(ends_ptr + ids, mask=ids < experts, other=2147483647)
    expert = tl.sum((ends <= tile).to(tl.int32))
    known = expert < experts
    end = tl.load(ends_ptr + expert, mask=known, other=0)
    first = tile - (end - tl.load(blocks_ptr + expert, mask=known, other=0))
    rows = first * BLOCK_M + tl.arange(0, BLOCK_M)
    # Of no expert there are no rows. (`known & ...` is no mask to the interpreter of Triton 3.9.)
    inside = rows < tl.load(counts_ptr + expert, mask=known, other=0)
    return expert, tl.load(starts_ptr + expert, mask=known, other=0) + rows, inside


@triton.jit(do_not_specialize=["experts", "top_k"])
def _gate_up(
    x_ptr, weight_ptr, order_ptr, ends_ptr, blocks_ptr, starts_ptr, counts_ptr, out_ptr,
    experts, top_k, hidden: tl.constexpr, intermediate: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    expert, rows, inside = _tile(
        tl.program_id(0), ends_ptr, blocks_ptr, starts_ptr, counts_ptr, experts, BLOCK_M, EXPERTS
    )
    if expert >= experts:
        return
    token = tl.load(order_ptr + rows, mask=inside, other=0) // top_k
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = columns < intermediate
    x = x_ptr + token.to(tl.int64)[:, None] * hidden
    gate = weight_ptr + expert.to(tl.int64) * 2 * intermediate * hidden + columns[None, :] * hidden
    up = gate + intermediate * hidden
    gated = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    upped = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, hidden, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + k[None, :], mask=inside[:, None] & (k < hidden)[None, :], other=0.0)
        mask = there[None, :] & (k < hidden)[:, None]
        g = tl.load(gate + k[:, None], mask=mask, other=0.0)
        u = tl.load(up + k[:, None], mask=mask, other=0.0)
        gated = tl.dot(a, g, gated, input_precision="ieee")
        upped = tl.dot(a, u, upped, input_precision="ieee")
    said = gated / (1.0 + tl.exp(-gated)) * upped
    out = out_ptr + rows.to(tl.int64)[:, None] * intermediate + columns[None, :]
    tl.store(out, said.to(out_ptr.dtype.element_ty), mask=inside[:, None] & there[None, :])


@triton.jit(do_not_specialize=["experts"])
def _down(
    x_ptr, weight_ptr, order_ptr, probability_ptr, ends_ptr, blocks_ptr, starts_ptr, counts_ptr,
    out_ptr, experts, hidden: tl.constexpr, intermediate: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    expert, rows, inside = _tile(
        tl.program_id(0), ends_ptr, blocks_ptr, starts_ptr, counts_ptr, experts, BLOCK_M, EXPERTS
    )
    if expert >= experts:
        return
    pair = tl.load(order_ptr + rows, mask=inside, other=0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = columns < hidden
    x = x_ptr + rows.to(tl.int64)[:, None] * intermediate
    weight = (
        weight_ptr + expert.to(tl.int64) * hidden * intermediate + columns[None, :] * intermediate
    )
    said = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, intermediate, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + k[None, :], mask=inside[:, None] & (k < intermediate)[None, :], other=0.0)
        mask = there[None, :] & (k < intermediate)[:, None]
        w = tl.load(weight + k[:, None], mask=mask, other=0.0)
        said = tl.dot(a, w, said, input_precision="ieee")
    probability = tl.load(probability_ptr + pair, mask=inside, other=0.0)
    out = out_ptr + pair.to(tl.int64)[:, None] * hidden + columns[None, :]
    tl.store(out, said * probability[:, None], mask=inside[:, None] & there[None, :])


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
    """As `kernels.torch_ops.moe`."""
    tokens, hidden = x.shape
    experts, intermediate = len(gate_up), down.shape[2]
    assert x.is_contiguous()
    assert gate_up.is_contiguous()
    assert down.is_contiguous()
    assert 0 <= first_expert <= router_logits.shape[1] - experts
    if tokens == 0:
        return torch.empty_like(x)
    weights, chosen = router_logits.float().softmax(dim=-1).topk(top_k, dim=-1)  # 1
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    pairs = tokens * top_k
    # Tiles of few rows when experts get few tokens each (decode).
    few = pairs <= ROWS_FEW * experts
    launch = MOE.launch(kind(x.device), x.element_size(), hidden, intermediate, experts, few)
    block_m, block_n = launch["BLOCK_M"], launch["BLOCK_N"]

    local = (chosen - first_expert).view(pairs)  # 2
    local = torch.where((local >= 0) & (local < experts), local, experts)  # elsewhere: the last
    order = local.argsort(stable=True).to(torch.int32)
    counts = torch.zeros(experts + 1, dtype=torch.int32, device=x.device)
    counts = counts.scatter_add_(0, local, torch.ones_like(local, dtype=torch.int32))[:experts]
    starts = (counts.cumsum(0) - counts).to(torch.int32)
    blocks = (counts + (block_m - 1)) // block_m
    ends = blocks.cumsum(0).to(torch.int32)
    tiles = min(pairs, pairs // block_m + experts)

    shape: dict[str, Any] = {**launch, "EXPERTS": triton.next_power_of_2(experts)}
    sorted_said = torch.empty(pairs, intermediate, dtype=x.dtype, device=x.device)
    said = torch.zeros(tokens, top_k, hidden, dtype=torch.float32, device=x.device)
    _gate_up[(tiles, triton.cdiv(intermediate, block_n))](  # 3
        x, gate_up, order, ends, blocks, starts, counts, sorted_said,
        experts, top_k, hidden, intermediate, **shape,
    )  # fmt: skip
    _down[(tiles, triton.cdiv(hidden, block_n))](  # 4
        sorted_said, down, order, weights.view(pairs), ends, blocks, starts, counts, said,
        experts, hidden, intermediate, **shape,
    )  # fmt: skip
    return said.sum(dim=1).to(x.dtype)  # 5


def cases() -> list[Case]:
    """Mixtral's 8 experts and Qwen 3 MoE's 128, for few and many tokens."""
    return [
        case
        for dtype in ("bf16", "fp16")
        for experts, hidden, intermediate in ((8, 4096, 14336), (128, 2048, 768))
        for few in (True, False)
        for case in _cases(dtype, experts, hidden, intermediate, few)
    ]


def _cases(dtype: str, experts: int, hidden: int, intermediate: int, few: bool) -> list[Case]:
    tables = ("order_ptr", "ends_ptr", "blocks_ptr", "starts_ptr", "counts_ptr")
    data = {"x_ptr": f"*{dtype}", "weight_ptr": f"*{dtype}", **dict.fromkeys(tables, "*i32")}
    launch = dict(MOE.launch("sm_90", 2, hidden, intermediate, experts, few))
    warps, stages = launch.pop("num_warps"), launch.pop("num_stages")
    constants = {"hidden": hidden, "intermediate": intermediate, "EXPERTS": experts, **launch}
    gate_up = {**data, "out_ptr": f"*{dtype}"}
    down = {**data, "probability_ptr": "*fp32", "out_ptr": "*fp32"}
    return [
        Case(
            name=f"moe {name} {dtype} {experts} {launch['BLOCK_M']}",
            kernel=kernel,
            types={**pointers, **sizes},
            constants=constants,
            aligned=tuple(pointers),
            num_warps=warps,
            num_stages=stages,
        )
        for name, kernel, pointers, sizes in (
            ("gate_up", _gate_up, gate_up, {"experts": "i32", "top_k": "i32"}),
            ("down", _down, down, {"experts": "i32"}),
        )
    ]
