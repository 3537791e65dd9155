"""Picking the next token in one kernel: no sort, no copy of the logits, no word from the host.

One program a row. In place of sorting, it draws from all tokens, and looks whether the filters
keep the drawn one: that takes the number and the mass of likelier tokens, one pass. If they do
not, it draws again among the likelier ones, with the same noise. What filters keep is always the
likeliest so many, hence the first kept draw is the best of all that are kept. A draw that is
refused leaves on average half of the refused mass, so that rounds are few.

Sources: noise and hashes as in `torch_ops.sampling`; sampling by rejection in place of sorting:
FlashInfer, "Sorting-Free GPU Kernels for LLM Sampling", 2025.
"""

import torch
import triton
import triton.language as tl

from kernels.ahead import Case

# Eight tokens a thread: more of them, with their noise, would not fit the registers.
_BLOCK_MAX = 4096
_WARP_ELEMENTS = 256
# The bits of infinity. Numbers that are not negative are ordered like their bits (IEEE 754 §3.4).
_INFINITY = tl.constexpr(0x7F800000)


def sample(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """The next token of each row. Ties go to the smallest id.

    Filters apply after the temperature, in this order: min_p, top_k, top_p of what is left. A
    token as likely as the last one kept is kept too.

    Args:
        logits: [rows, vocabulary], any float dtype, finite or -inf; contiguous.
        temperatures: [rows] fp32; 0 is greedy.
        top_k: [rows] int64, in [1, vocabulary]; the vocabulary's size keeps all.
        top_p: [rows] fp32, in (0, 1]; 1 keeps all.
        min_p: [rows] fp32, in [0, 1); 0 keeps all.
        seeds: [rows] int64, any value.
        positions: [rows] int64: the place in its sequence of the token to pick.

    Returns:
        [rows] int64. Masses are sums in fp32 in an order that depends on the vocabulary only:
        where a token lies within 1e-6 of the nucleus' end, the reference may decide otherwise.
    """
    assert logits.dim() == 2
    assert logits.is_contiguous()
    rows, vocabulary = logits.shape
    for one in (temperatures, top_p, min_p):
        assert one.shape == (rows,)
        assert one.dtype == torch.float32
        assert one.is_contiguous()
    for one in (top_k, seeds, positions):
        assert one.shape == (rows,)
        assert one.dtype == torch.int64
        assert one.is_contiguous()
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    block, warps = _block_and_warps(vocabulary)
    sample_kernel[(rows,)](
        out,
        logits,
        temperatures,
        top_k,
        top_p,
        min_p,
        seeds,
        positions,
        vocabulary,
        block,
        num_warps=warps,
        num_stages=1,
    )
    return out


def _block_and_warps(vocabulary: int) -> tuple[int, int]:
    """How many tokens a program looks at at a time, and its warps."""
    block = min(triton.next_power_of_2(vocabulary), _BLOCK_MAX)
    return block, max(block // _WARP_ELEMENTS, 1)


# Rows of a step's parameters may be views: their alignment must not choose a variant.
_ROW_ARGUMENTS = ["out", "temperatures", "top_k", "top_p", "min_p", "seeds", "positions"]


@triton.jit(do_not_specialize=_ROW_ARGUMENTS)
def sample_kernel(
    out: tl.tensor,
    logits: tl.tensor,
    temperatures: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    min_p: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row.

    A token's distance is the bits of |(logit - peak) / temperature|: 0 of the likeliest, less of
    the likelier of two, the same of equals, infinity's of the impossible and of padding, and more
    of what is not a number. No limit is more than infinity's.
    """
    row = tl.program_id(0)
    logits += row.to(tl.int64) * VOCABULARY
    peak, token = _argmax(logits, VOCABULARY, BLOCK)
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        rank_max = tl.load(top_k + row)
        nucleus = tl.load(top_p + row)
        low, high = _key(tl.load(seeds + row), tl.load(positions + row))
        # Only nearer tokens may be drawn. At first: what min_p keeps, and nothing impossible.
        limit = _min_p_limit(tl.load(min_p + row))
        mass_max = float("inf")
        if nucleus < 1:
            mass_max = nucleus * _kept_mass(
                logits, peak, temperature, limit, rank_max, VOCABULARY, BLOCK
            )
        filtered = (rank_max < VOCABULARY) | (nucleus < 1)
        searching = True
        while searching:
            drawn = _draw(logits, peak, temperature, limit, low, high, VOCABULARY, BLOCK)
            searching = False
            if drawn < VOCABULARY:  # or else a logit is not a number
                token = drawn
                if filtered:
                    limit = _distance(tl.load(logits + drawn).to(tl.float32), peak, temperature)
                    count, mass = _nearer(logits, peak, temperature, limit, VOCABULARY, BLOCK)
                    searching = (count >= rank_max) | (mass >= mass_max)
    tl.store(out + row, tl.minimum(token, VOCABULARY - 1).to(tl.int64))


@triton.jit
def _argmax(
    logits: tl.tensor, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The largest logit, and the smallest id that has it."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.full([BLOCK], VOCABULARY, tl.int32)
    for start in range(0, VOCABULARY, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        value = tl.load(logits + ids, mask=ids < VOCABULARY, other=float("-inf")).to(tl.float32)
        better = value > best
        best = tl.where(better, value, best)
        best_id = tl.where(better, ids, best_id)
    top, top_id = _smallest_id_of_best(best, best_id, VOCABULARY)
    return top, top_id


@triton.jit
def _smallest_id_of_best(
    best: tl.tensor, best_id: tl.tensor, VOCABULARY: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    top = tl.max(best, axis=0)
    return top, tl.min(tl.where(best == top, best_id, VOCABULARY), axis=0)


@triton.jit
def _distance(logit: tl.tensor, peak: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """int32. The likeliest is at 0 before dividing by what may be next to nothing."""
    scaled = tl.div_rn(logit - peak, temperature)
    return tl.abs(scaled).to(tl.int32, bitcast=True)


@triton.jit
def _min_p_limit(min_p: tl.tensor) -> tl.tensor:
    """The first distance that min_p drops; at most that of the impossible."""
    floor = -tl.log(tl.where(min_p > 0, min_p, 1.0))
    return tl.where(min_p > 0, tl.abs(floor).to(tl.int32, bitcast=True) + 1, _INFINITY)


@triton.jit
def _nearer(
    logits: tl.tensor,
    peak: tl.tensor,
    temperature: tl.tensor,
    limit: tl.tensor,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Of the tokens nearer than `limit`: their number, and their mass, the likeliest having 1."""
    counts = tl.zeros([BLOCK], tl.int32)
    masses = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCABULARY, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logit = tl.load(logits + ids, mask=ids < VOCABULARY, other=float("-inf")).to(tl.float32)
        distance = _distance(logit, peak, temperature)
        nearer = distance < limit
        counts += nearer.to(tl.int32)
        masses += tl.where(nearer, tl.exp(-distance.to(tl.float32, bitcast=True)), 0.0)
    return tl.sum(counts, axis=0), tl.sum(masses, axis=0)


@triton.jit
def _kept_mass(
    logits: tl.tensor,
    peak: tl.tensor,
    temperature: tl.tensor,
    limit: tl.tensor,
    rank_max: tl.tensor,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """What the `rank_max` likeliest of the tokens nearer than `limit` have together."""
    count, mass = _nearer(logits, peak, temperature, limit, VOCABULARY, BLOCK)
    if count > rank_max:
        # The distance of the last in rank lies in [nearest, farthest].
        nearest = limit * 0
        farthest = limit - 1
        while nearest < farthest:
            middle = nearest + (farthest - nearest) // 2
            count, mass = _nearer(logits, peak, temperature, middle + 1, VOCABULARY, BLOCK)
            if count < rank_max:
                nearest = middle + 1
            else:
                farthest = middle
            if count == rank_max:
                # None but those: it need not be found any closer.
                nearest = middle + 1
                farthest = middle + 1
        count, mass = _nearer(logits, peak, temperature, nearest, VOCABULARY, BLOCK)
        # Of several that share the last rank, so many as fit.
        last = tl.exp(-nearest.to(tl.float32, bitcast=True))
        mass += (rank_max - count).to(tl.float32) * last
    return mass


@triton.jit
def _draw(
    logits: tl.tensor,
    peak: tl.tensor,
    temperature: tl.tensor,
    limit: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The token nearer than `limit` whose logit and noise are largest; VOCABULARY if none is."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.full([BLOCK], VOCABULARY, tl.int32)
    for start in range(0, VOCABULARY, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logit = tl.load(logits + ids, mask=ids < VOCABULARY, other=float("-inf")).to(tl.float32)
        distance = _distance(logit, peak, temperature)
        value = _gumbel(ids, low, high) - distance.to(tl.float32, bitcast=True)
        better = (distance < limit) & (value > best)
        best = tl.where(better, value, best)
        best_id = tl.where(better, ids, best_id)
    _, drawn = _smallest_id_of_best(best, best_id, VOCABULARY)
    return drawn


@triton.jit
def _gumbel(ids: tl.tensor, low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """fp32 standard Gumbel noise of each token: -log(E), E exponential."""
    bits = _mix32(_mix32(ids.to(tl.uint32) ^ low) + high)
    uniform = ((bits & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10
    uniform = tl.minimum(uniform, 0.99999994)
    # log1p(-u), as accurate for small u as log is (Goldberg 1991, theorem 4).
    rest = 1.0 - uniform
    taken = 1.0 - rest
    ratio = uniform / tl.where(taken > 0, taken, 1.0)
    exponential = tl.where(taken > 0, -tl.log(rest) * ratio, uniform)
    return -tl.log(exponential)


@triton.jit
def _key(seed: tl.tensor, position: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The low and the high half of the row's hash."""
    key = _splitmix64(_splitmix64(seed.to(tl.uint64)) ^ position.to(tl.uint64))
    return key.to(tl.uint32), (key >> 32).to(tl.uint32)


@triton.jit
def _splitmix64(x: tl.tensor) -> tl.tensor:
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _mix32(x: tl.tensor) -> tl.tensor:
    """MurmurHash3's finaliser."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


def cases() -> list[Case]:
    """Vocabularies of SmolLM2 and Llama 3."""
    return [
        _case("fp32", 49152),
        *(_case(dtype, 128256) for dtype in ("fp32", "bf16", "fp16")),
    ]


def _case(dtype: str, vocabulary: int) -> Case:
    block, warps = _block_and_warps(vocabulary)
    types = {
        "out": "*i64",
        "logits": f"*{dtype}",
        "temperatures": "*fp32",
        "top_k": "*i64",
        "top_p": "*fp32",
        "min_p": "*fp32",
        "seeds": "*i64",
        "positions": "*i64",
    }
    return Case(
        name=f"sample {dtype} {vocabulary}",
        kernel=sample_kernel,
        types=types,
        constants={"VOCABULARY": vocabulary, "BLOCK": block},
        aligned=("logits",),
        num_warps=warps,
        num_stages=1,
    )
