"""What must always hold of sequences' block tables, beside what the pool knows itself."""

from collections.abc import Sequence as Many

from replica.core.block_pool import BlockPool
from replica.core.queue_order import check_sorted
from replica.core.sequence import Sequence, State


def check_tables(pool: BlockPool, running: list[Sequence], waiting: Many[Sequence]) -> None:
    """References are the block tables'; a block being written is one sequence's.

    Args:
        running: By arrival.
    """
    check_sorted(running)
    held = [0] * pool.total_blocks
    for state, group in ((State.RUNNING, running), (State.WAITING, waiting)):
        for sequence in group:
            assert sequence.state is state
            sequence.check(pool.block_size)
            for block in sequence.blocks:
                held[block] += 1
    for block, count in enumerate(held):
        assert pool.references(block) == count, f"block {block} is leaked or shared"
    for sequence in running:
        for block in sequence.blocks[sequence.num_computed // pool.block_size :]:
            assert held[block] == 1, f"block {block} is written to and shared"
