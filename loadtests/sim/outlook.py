"""What a replica will do, reckoned from its true state: when a prompt more would be computed.

    now ── step that runs ── prefills that queue ── wait for memory ── our prefill ─▶ first token

Queued prefills are reckoned to the token, memory by who ends when: lengths of answers are known.
Preemptions, and who exactly shares a step, are left out.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from loadtests.sim.replica import SimReplica


@dataclass(slots=True)
class Outlook:
    """One replica from now on.

    Attributes:
        free_s: When all prefills that queue now are done.
        spare_blocks: Free ones that nobody who waits will take; below 0 they lack.
        evictable_from: Blocks more than this push something out of the cache.
        freed_blocks, freed_s: How many blocks more are free after each end, and when that is.
    """

    replica: SimReplica
    decodes_s: float
    free_s: float
    spare_blocks: int
    evictable_from: int
    freed_blocks: list[int] = field(default_factory=list)
    freed_s: list[float] = field(default_factory=list)

    def prefill_s(self, context: int, tokens: int, *, joins: bool) -> float:
        """How long `tokens` after `context` take here, beside what decodes.

        Args:
            joins: It shares steps with what queues before it.
        """
        preset = self.replica.preset
        timing, most = preset.timing, preset.max_batched_tokens
        steps = tokens / most if joins else -(-tokens // most)
        pairs = tokens * (context + (tokens + 1) / 2)
        return tokens * timing.token_s + pairs * timing.pair_s + steps * self.step_s

    @property
    def step_s(self) -> float:
        """What a step costs beside its prefills."""
        return self.replica.preset.timing.base_s + self.decodes_s

    @property
    def queues(self) -> bool:
        """Whether somebody waits here, whose steps can be shared."""
        return self.replica.scheduler.num_waiting > 0

    def memory_s(self, blocks: int) -> float:
        """When so many blocks more can be had; 0 if now."""
        missing = blocks - self.spare_blocks
        if missing <= 0:
            return 0.0
        if not self.freed_s:
            return self.free_s
        # Beyond what ends now follows what waits now: later than all we know of.
        return self.freed_s[min(bisect_left(self.freed_blocks, missing), len(self.freed_s) - 1)]


def outlook(replica: SimReplica, uncached_tokens: Mapping[int, int], now: float) -> Outlook:
    """
    Args:
        uncached_tokens: Of requests that wait there, by number: what they will have to compute.
    """
    scheduler, timing = replica.scheduler, replica.preset.timing
    size = scheduler.pool.block_size
    decoding = held = tokens = 0
    pairs = 0.0
    for one in scheduler._running:
        left = one.num_unplanned  # what the step that runs computes is done when it ends
        if left <= 1:
            decoding += 1
            held += one.num_tokens
        else:
            tokens += left
            pairs += left * (one.num_planned + (left + 1) / 2)
    wanted = 0
    for one in scheduler._waiting:
        left = min(one.num_tokens, uncached_tokens[one.request.sequence_id])
        tokens += left
        pairs += left * (one.num_tokens - left / 2)
        wanted += -(-left // size)
    decodes_s = timing.sequence_s * decoding + timing.held_s * held
    steps = -(-tokens // replica.preset.max_batched_tokens)
    queue_s = tokens * timing.token_s + pairs * timing.pair_s + steps * (timing.base_s + decodes_s)
    begins_s = max(now, replica.step_ends_s(now))
    pool = scheduler.pool
    found = Outlook(
        replica=replica,
        decodes_s=decodes_s,
        free_s=begins_s + queue_s,
        spare_blocks=pool.free_blocks - wanted - scheduler.num_running - scheduler.num_waiting,
        evictable_from=pool.total_blocks - pool.cached_blocks - wanted,
    )
    _ends(found, begins_s, queue_s, steps)
    return found


def _ends(found: Outlook, begins_s: float, queue_s: float, steps: int) -> None:
    """When running sequences end: a token a step, first beside the queue's prefills."""
    scheduler = found.replica.scheduler
    size = scheduler.pool.block_size
    ends = []
    for one in scheduler._running:
        left = one.request.max_tokens - one.num_generated
        if left <= steps:
            when = begins_s + queue_s * left / steps
        else:
            when = begins_s + queue_s + (left - steps) * found.step_s
        # What it found in the cache others may hold still.
        ends.append((when, len(one.blocks) - one.cached_tokens // size))
    ends.sort()
    found.freed_s = [when for when, _ in ends]
    found.freed_blocks = list(accumulate(blocks for _, blocks in ends))
