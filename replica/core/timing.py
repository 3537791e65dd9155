"""How long an engine's step takes: a sum of what its prefills and its decodes cost.

    step = base + token · new + pair · Σ (new · context before it) + sequence · decodes
         + held · Σ context of decodes

    base       weights read once, launches           sequence   what each decode adds beside its KV
    token      arithmetic of one prompt token        held       one token of KV read by a decode
    pair       attention of a new token to one before

Presets of GPUs are reckoned from hardware and shapes, not tuned to any trace.
"""

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct, structs

from replica.core.plan import StepPlan

Cost = Annotated[float, Meta(ge=0)]

Work = tuple[float, float, float, float, float]
"""What is in a step, in the order of Timing's fields."""


class Timing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds: of a step, and for each of what is in it."""

    base_s: Cost
    token_s: Cost
    pair_s: Cost
    sequence_s: Cost
    held_s: Cost

    def step_s(self, plan: StepPlan) -> float:
        return self.work_s(work_of(plan))

    def work_s(self, work: Work) -> float:
        base, tokens, pairs, decodes, held = work
        return (
            self.base_s * base
            + self.token_s * tokens
            + self.pair_s * pairs
            + self.sequence_s * decodes
            + self.held_s * held
        )

    def decode_s(self, sequences: int, held_tokens: int) -> float:
        """A step of decodes alone."""
        return self.base_s + self.sequence_s * sequences + self.held_s * held_tokens

    def slowed(self, factor: float) -> "Timing":
        """A device that takes so many times as long for everything."""
        return Timing(**{name: value * factor for name, value in structs.asdict(self).items()})


def work_of(plan: StepPlan) -> Work:
    tokens = pairs = decodes = held = 0.0
    for part in plan.slices:
        new = part.num_tokens
        if new == 1:
            decodes += 1
            held += part.start + 1
        else:
            tokens += new
            pairs += new * (part.start + (new + 1) / 2)
    return 1.0, tokens, pairs, decodes, held


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One kind of replica.

    Attributes:
        cache_tokens: Of its KV cache: what its memory holds beside the weights.
    """

    timing: Timing
    cache_tokens: int
    max_batched_tokens: int
    max_running: int


# A share of what the maker's numbers allow: 80 % of the bandwidth, 50 % of the arithmetic of
# products, 40 % of that of attention.
PRESETS = {
    # Llama 3.1 8B in bf16 on an H100: 16 GB of weights, 128 KiB of KV and 16 GFLOP a token.
    "h100-8b": Preset(
        timing=Timing(base_s=6.0e-3, token_s=33e-6, pair_s=1.3e-9, sequence_s=20e-6, held_s=49e-9),
        cache_tokens=400_000,
        max_batched_tokens=8192,
        max_running=256,
    ),
    # Llama 3.1 70B on four H100: 35 GB of weights, 80 KiB of KV and 35 GFLOP a token each, and two
    # sums a layer between them.
    "h100-70b-tp4": Preset(
        timing=Timing(base_s=15.5e-3, token_s=79e-6, pair_s=1.7e-9, sequence_s=30e-6, held_s=31e-9),
        cache_tokens=400_000,
        max_batched_tokens=8192,
        max_running=256,
    ),
    # SmolLM2 135M on one core of an AMD EPYC, fitted by `loadtests.sim.measure`: off by 4 % in the
    # median step, 15 % at most.
    "cpu-smollm2": Preset(
        timing=Timing(
            base_s=24.4e-3, token_s=1.18e-3, pair_s=1.13e-6, sequence_s=1.25e-3, held_s=5.6e-6
        ),
        cache_tokens=32_768,
        max_batched_tokens=512,
        max_running=32,
    ),
}
