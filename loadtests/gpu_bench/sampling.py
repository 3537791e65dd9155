"""Cases of picking the next token, beside what torch does with a sort."""

from collections.abc import Iterator

import torch

from kernels import floors
from loadtests.gpu_bench.case import Arguments, Case, Run, random
from loadtests.gpu_bench.sizes import Sizes

# temperature, top_k (None: all), top_p
_MODES: dict[str, tuple[float, int | None, float]] = {
    "greedy": (0.0, None, 1.0),
    "temperature 0.8": (0.8, None, 1.0),
    "top-k 50, top-p 0.9": (0.8, 50, 0.9),
}
# Logits of a standard normal would be nearly even: a model's next token is far from it.
_SPREAD = 3.0


def cases(sizes: Sizes) -> Iterator[Case]:
    for mode in _MODES:
        for rows in sizes.sampled_rows:
            yield sample(rows, sizes.vocabulary, mode)


def sample(rows: int, vocabulary: int, mode: str) -> Case:
    """`mode`: of _MODES, or "mixed": row by row another one."""
    chosen = list(_MODES.values()) if mode == "mixed" else [_MODES[mode]]
    of_row = [chosen[row % len(chosen)] for row in range(rows)]

    def make(dtype: torch.dtype, device: torch.device) -> Arguments:
        temperatures, top_k, top_p = zip(*of_row, strict=True)
        ranks = [vocabulary if rank is None else min(rank, vocabulary) for rank in top_k]
        return {
            "logits": random(rows, vocabulary)(dtype, device).mul_(_SPREAD),
            "temperatures": torch.tensor(temperatures, dtype=torch.float32, device=device),
            "top_k": torch.tensor(ranks, dtype=torch.int64, device=device),
            "top_p": torch.tensor(top_p, dtype=torch.float32, device=device),
            "min_p": torch.zeros(rows, device=device),
            "seeds": torch.arange(rows, dtype=torch.int64, device=device) * 7919,
            "positions": torch.arange(rows, dtype=torch.int64, device=device),
        }

    rivals = {
        "greedy": {"argmax": _argmax},
        "temperature 0.8": {"softmax, argmax": _softmax},
        "top-k 50, top-p 0.9": {"sort": _sort},
    }
    work = floors.sample(rows, vocabulary)
    return Case("sample", f"{rows} × {vocabulary:,}, {mode}", work, make, exact=True,
                rivals=rivals.get(mode, {}))  # fmt: skip


def _argmax(given: Arguments) -> Run:
    logits = given["logits"]
    return lambda: logits.argmax(dim=-1)


def _softmax(given: Arguments) -> Run:
    """By the exponential race (argmax p / E), whose numbers are drawn before it is timed."""
    logits: torch.Tensor = given["logits"]
    temperatures: torch.Tensor = given["temperatures"].unsqueeze(1)
    waiting = torch.empty(logits.shape, device=logits.device).exponential_()

    def run() -> torch.Tensor:
        return (logits.float() / temperatures).softmax(dim=-1).div_(waiting).argmax(dim=-1)

    return run


def _sort(given: Arguments) -> Run:
    """Sorted, cut by rank and by mass, drawn by the same race, and back to the token's id."""
    logits: torch.Tensor = given["logits"]
    temperatures: torch.Tensor = given["temperatures"].unsqueeze(1)
    top_k, top_p = given["top_k"].unsqueeze(1), given["top_p"].unsqueeze(1)
    waiting = torch.empty(logits.shape, device=logits.device).exponential_()
    ranks = torch.arange(logits.shape[1], device=logits.device)

    def run() -> torch.Tensor:
        ordered, ids = (logits.float() / temperatures).sort(dim=-1, descending=True)
        kept = ordered.masked_fill_(ranks >= top_k, -torch.inf).softmax(dim=-1)
        before = kept.cumsum(dim=-1) - kept
        drawn = kept.masked_fill_(before >= top_p, 0).div_(waiting).argmax(dim=-1, keepdim=True)
        return ids.gather(1, drawn).squeeze(1)

    return run
