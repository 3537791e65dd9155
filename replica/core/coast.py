"""Many decode steps at once, for simulation: a scheduler is left as single steps would leave it.

While every running sequence decodes, none ends, and nobody can be admitted (nor finds more in the
cache than before), steps differ in nothing but their tokens. Taking them one by one is what costs a
simulation most. (Sequences that generate the same tokens would share blocks step by step; here each
has its own until the end.)
"""

from collections.abc import Callable

from replica.core.plan import StepPlan
from replica.core.scheduler import Scheduler
from replica.core.sequence import Sequence, State

NextTokens = Callable[[Sequence, int], list[int]]


def coast_steps_max(scheduler: Scheduler, last: StepPlan) -> int:
    """How many steps can be taken at once now; 0 if not even two.

    Args:
        last: The plan applied just before. Nothing was submitted or aborted since it was made.
    """
    running = scheduler._running
    if scheduler._in_flight or not running or len(last.slices) != len(running):
        return 0
    if any(part.num_tokens != 1 or part.sampling is None for part in last.slices):
        return 0
    if any(one.num_unplanned != 1 or one.request.stop_token_ids for one in running):
        return 0
    if any(one.state is State.WAITING and _gains(scheduler, one) for one in scheduler._tried):
        return 0
    # The last token of a sequence is left to a step of its own.
    most = min(scheduler._longest(one.request) - one.num_tokens for one in running) - 1
    while most > 1 and _blocks_needed(scheduler, most) > scheduler.pool.free_blocks:
        most //= 2
    return most if most > 1 else 0


def coast(scheduler: Scheduler, steps: int, next_tokens: NextTokens) -> None:
    """Takes so many steps at once.

    Args:
        steps: At most what `coast_steps_max` said.
        next_tokens: The tokens a sequence generates in as many steps.
    """
    assert steps > 0
    for sequence in scheduler._running:
        missing = _blocks_of(scheduler, sequence, steps) - len(sequence.blocks)
        if missing > 0:
            sequence.blocks += scheduler.pool.allocate(missing)
        tokens = next_tokens(sequence, steps)
        assert len(tokens) == steps
        sequence.token_ids += tokens
        sequence.num_planned += steps
        sequence.num_computed = sequence.num_planned
        scheduler._store_full_blocks(sequence)
    scheduler.counters.steps += steps
    scheduler.counters.generated_tokens += steps * len(scheduler._running)


def _gains(scheduler: Scheduler, waiting: Sequence) -> bool:
    """Whether a running sequence fills a block that this one would find: it may then be admitted,
    or wait for that block and let others pass."""
    if not waiting.findable:
        return False
    size, tokens = scheduler.pool.block_size, waiting.token_ids
    for one in scheduler._running:
        begun = one.num_tokens // size * size
        same_block = one.token_ids[begun:] == tokens[begun : one.num_tokens]
        if same_block and one.token_ids[:begun] == tokens[:begun] and one.findable:
            return True
    return False


def _blocks_needed(scheduler: Scheduler, steps: int) -> int:
    return sum(
        max(0, _blocks_of(scheduler, one, steps) - len(one.blocks)) for one in scheduler._running
    )


def _blocks_of(scheduler: Scheduler, sequence: Sequence, steps: int) -> int:
    """Of its table after the steps; the newest token's KV is computed by the step after them."""
    return scheduler._blocks_for(sequence.num_tokens + steps - 1)
