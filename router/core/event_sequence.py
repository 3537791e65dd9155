"""Where we are in a replica's stream of event batches, and what the next one's number means.

snapshot taken at seq 7:     next = 8
live 5, 6, 7   OLD           the snapshot has them
live 8         NEXT          apply it, next = 9
live 11        GAP           9 and 10 are missing: replay from 9
live 3         RESTARTED     numbers went back within one live stream: a new engine
live 3         OLD           the same, but it says that the engine is the same: came twice, or late
"""

from enum import Enum


class Verdict(Enum):
    NEXT = "next"
    OLD = "old"
    GAP = "gap"
    RESTARTED = "restarted"


class EventSequence:
    """Follows the numbers of one replica's batches from a known point on."""

    def __init__(self, next_seq: int | None) -> None:
        """
        Args:
            next_seq: The first batch not yet accounted for. None: wherever the live stream begins,
                for replicas that cannot tell what came before.
        """
        self.next_seq = next_seq
        self._lowest_live = 0
        self.check()

    def judge(self, seq: int, *, same_life: bool = False) -> Verdict:
        """What live batch `seq` means. Counts it as applied when the verdict is NEXT.

        Args:
            same_life: The message itself says that the engine has not restarted.
        """
        if seq < self._lowest_live:
            return Verdict.OLD if same_life else Verdict.RESTARTED
        self._lowest_live = seq + 1
        if self.next_seq is None:
            self.next_seq = seq
        if seq < self.next_seq:
            return Verdict.OLD
        if seq > self.next_seq:
            return Verdict.GAP
        self.next_seq = seq + 1
        return Verdict.NEXT

    def replayed(self, seq: int) -> bool:
        """Whether replayed batch `seq` is the next one; then it counts as applied."""
        if self.next_seq is None:
            self.next_seq = seq
        if seq != self.next_seq:
            return False
        self.next_seq = seq + 1
        return True

    def check(self) -> None:
        assert self.next_seq is None or self.next_seq >= 0
        assert self._lowest_live >= 0
