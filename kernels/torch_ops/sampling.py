"""Picking the next token: greedy, or by the Gumbel-max trick with counter-based noise.

argmax(logits / T + G) with independent Gumbel noise G draws from softmax(logits / T). The noise
of a token is a hash of (seed, position, token id), so a draw depends on nothing else: not on the
batch, not on earlier draws, not on which tokens the filters kept.

Source: Gumbel-max: Maddison et al. 2014, arXiv:1411.0030. Hashes: splitmix64 (Steele et al. 2014)
and MurmurHash3's 32-bit finaliser (Appleby).
"""

import torch

# How many likeliest tokens are looked at first: enough for nearly every nucleus, and about ten
# times cheaper than sorting a vocabulary.
_SHORT_LIST = 1024


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
        logits: [rows, vocabulary], any float dtype, finite or -inf.
        temperatures: [rows] fp32; 0 is greedy.
        top_k: [rows] int64, in [1, vocabulary]; the vocabulary's size keeps all.
        top_p: [rows] fp32, in (0, 1]; 1 keeps all.
        min_p: [rows] fp32, in [0, 1); 0 keeps all.
        seeds: [rows] int64, any value.
        positions: [rows] int64: the place in its sequence of the token to pick.

    Returns:
        [rows] int64.
    """
    assert logits.dim() == 2
    assert all(
        one.shape == logits.shape[:1]
        for one in (temperatures, top_k, top_p, min_p, seeds, positions)
    )
    # In fp32: argmax over bf16 is eight times slower on a CPU.
    logits = logits.float()
    picked = logits.argmax(dim=-1)
    random_rows = temperatures.nonzero().squeeze(1)
    if len(random_rows) == 0:
        return picked
    scaled = logits[random_rows]
    # The likeliest at 0, so that dividing by next to nothing leaves it there and no inf - inf.
    scaled = scaled.sub_(scaled.amax(dim=-1, keepdim=True)).div_(
        temperatures[random_rows].unsqueeze(1)
    )
    _filter(scaled, top_k[random_rows], top_p[random_rows], min_p[random_rows])
    noise = _gumbel(seeds[random_rows], positions[random_rows], logits.shape[1])
    picked[random_rows] = scaled.add_(noise).argmax(dim=-1)
    return picked


def _filter(
    logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> None:
    """Sets what the filters drop to -inf, in place, in the rows that have a filter."""
    if bool((min_p > 0).any()):
        floor = logits.max(dim=-1, keepdim=True).values + min_p.log().unsqueeze(1)
        logits.masked_fill_(logits < floor, -torch.inf)
    vocabulary = logits.shape[1]
    rows = ((top_k < vocabulary) | (top_p < 1)).nonzero().squeeze(1)
    if len(rows) == 0:
        return
    floor = torch.full_like(logits[:, :1], -torch.inf)
    floor[rows] = _rank_floor(logits[rows], top_k[rows], top_p[rows])
    logits.masked_fill_(logits < floor, -torch.inf)


def _rank_floor(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """[rows, 1]: the smallest logit that top_k, then top_p, keep."""
    vocabulary = logits.shape[1]
    bounded = top_k < vocabulary
    longest = int(torch.where(bounded, top_k, 1).max())
    count = min(max(longest, _SHORT_LIST), vocabulary)
    # Sums in float64, so that where a nucleus ends does not depend on the order of addition.
    mass = logits.double().logsumexp(dim=-1, keepdim=True)
    while True:
        ordered = logits.topk(count, dim=-1).values.double()
        ranks = torch.arange(1, count + 1, device=logits.device)
        in_top_k = ranks <= top_k.unsqueeze(1)
        kept_mass = torch.where(
            bounded.unsqueeze(1),
            ordered.masked_fill(~in_top_k, -torch.inf).logsumexp(dim=-1, keepdim=True),
            mass,
        )
        probabilities = (ordered - kept_mass).exp()
        before = probabilities.cumsum(dim=-1) - probabilities
        in_nucleus = (before < top_p.unsqueeze(1)) & in_top_k
        complete = bounded | ~in_nucleus[:, -1] | (top_p >= 1)
        if count == vocabulary or bool(complete.all()):
            break
        count = vocabulary
    last = in_nucleus.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    floor = ordered.gather(1, last)
    keeps_all = (~bounded & (top_p >= 1)).unsqueeze(1)
    return floor.masked_fill(keeps_all, -torch.inf).to(logits.dtype)


def _gumbel(seeds: torch.Tensor, positions: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """[rows, vocabulary] fp32 standard Gumbel noise: -log(E), E exponential."""
    key = _splitmix64(_splitmix64(seeds) ^ positions)
    low, high = key.to(torch.int32).unsqueeze(1), (key >> 32).to(torch.int32).unsqueeze(1)
    tokens = torch.arange(vocabulary, dtype=torch.int32, device=seeds.device).unsqueeze(0)
    bits = _mix32(_mix32(tokens ^ low) + high)
    # 31 bits, centred in their interval: u is never 0 or 1, and fine near 0, where E is small and
    # the token likely to win.
    uniform = (bits & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _splitmix64(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's output function; int64 arithmetic wraps."""
    x = x + _signed(0x9E3779B97F4A7C15, 64)
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9, 64)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB, 64)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _mix32(x: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's finaliser; int32 arithmetic wraps. The masks make the shifts logical."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * _signed(0x85EBCA6B, 32)
    x = (x ^ ((x >> 13) & 0x7FFFF)) * _signed(0xC2B2AE35, 32)
    return x ^ ((x >> 16) & 0xFFFF)


def _signed(constant: int, bits: int) -> int:
    """The two's complement reading of an unsigned constant."""
    return constant - (1 << bits) if constant >> (bits - 1) else constant
