"""What a batch's number means, and that the tree ends up true whatever messages are lost."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent
from router.core.event_sequence import EventSequence, Verdict
from router.core.kv_index import KvIndex
from router.core.prefix_tree import PrefixTree
from tests.support.event_publisher import BYTE_VOCABULARY, REPLICA, stored

NEXT, OLD, GAP, RESTARTED = Verdict.NEXT, Verdict.OLD, Verdict.GAP, Verdict.RESTARTED


@pytest.mark.parametrize(
    ("start", "live", "verdicts"),
    [
        pytest.param(8, [5, 6, 7, 8, 9], [OLD, OLD, OLD, NEXT, NEXT], id="snapshot-has-some"),
        pytest.param(8, [8, 11], [NEXT, GAP], id="gap"),
        pytest.param(8, [10], [GAP], id="gap-right-after-the-snapshot"),
        pytest.param(0, [0, 1, 0], [NEXT, NEXT, RESTARTED], id="went-back"),
        pytest.param(0, [0, 0], [NEXT, RESTARTED], id="twice"),
        pytest.param(8, [5, 3], [OLD, RESTARTED], id="went-back-below-the-snapshot"),
        pytest.param(None, [41, 42, 44], [NEXT, NEXT, GAP], id="wherever-it-begins"),
    ],
)
def test_live_numbers(start: int | None, live: list[int], verdicts: list[Verdict]) -> None:
    sequence = EventSequence(start)
    for seq, verdict in zip(live, verdicts, strict=True):
        assert sequence.judge(seq) is verdict
        sequence.check()


def test_numbers_that_go_back_within_one_life_are_messages_that_came_twice_or_late() -> None:
    sequence = EventSequence(5)
    verdicts = [sequence.judge(seq, same_life=True) for seq in (5, 5, 6, 4, 7)]
    assert verdicts == [NEXT, OLD, NEXT, OLD, NEXT]
    assert sequence.judge(0) is RESTARTED


def test_replays_fill_a_gap_in_order_and_once() -> None:
    sequence = EventSequence(3)
    assert sequence.judge(6) is GAP
    assert [sequence.replayed(seq) for seq in (2, 3, 3, 5, 4, 5, 6)] == [
        False, True, False, False, True, True, True,
    ]  # fmt: skip
    assert sequence.judge(7) is NEXT


class Engine:
    """The truth: blocks held, batches sent so far in this life."""

    def __init__(self) -> None:
        self.held: dict[int, BlockStored] = {}
        self.batches: list[list[KvEvent]] = []
        self._hashes = iter(range(10**6))

    def step(self, kind: int) -> None:
        events: list[KvEvent] = []
        leaves = set(self.held) - {one.parent_block_hash for one in self.held.values()}
        if kind % 7 == 0:
            self.held.clear()
            events.append(AllBlocksCleared())
        elif kind % 3 == 0 and leaves:
            gone = sorted(leaves)[kind % len(leaves)]  # type: ignore[type-var]
            del self.held[gone]  # type: ignore[arg-type]
            events.append(BlockRemoved(block_hashes=[gone]))
        else:
            parent = sorted(self.held)[kind % len(self.held)] if self.held else None
            hash = next(self._hashes)
            event = stored(hash, b"%04d" % hash, None if kind % 2 else parent)
            self.held[hash] = event
            events.append(event)
        self.batches.append(events)


class Listener:
    """The subscription's decisions without its sockets."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tree = PrefixTree()
        self.index = KvIndex(self.tree, BYTE_VOCABULARY)
        self.resync()

    def resync(self) -> None:
        self.index.clear(REPLICA)
        self.index.apply(REPLICA, self.engine.held.values())
        self.sequence = EventSequence(len(self.engine.batches))

    def hear(self, seq: int, events: Sequence[KvEvent], buffer_from: int) -> None:
        verdict = self.sequence.judge(seq)
        if verdict is GAP:
            assert self.sequence.next_seq is not None
            first = max(self.sequence.next_seq, buffer_from)
            for number in range(first, len(self.engine.batches)):
                if self.sequence.replayed(number):
                    self.index.apply(REPLICA, self.engine.batches[number])
            if self.sequence.next_seq <= seq:
                self.resync()
        elif verdict is NEXT:
            self.index.apply(REPLICA, events)
        elif verdict is RESTARTED:
            self.resync()
        self.sequence.check()
        self.tree.check()


steps = st.lists(
    st.tuples(
        st.integers(0, 100),
        st.sampled_from(["heard", "heard", "heard", "lost", "twice", "restart", "late-snapshot"]),
        st.integers(0, 4),
    ),
    max_size=40,
)


@given(steps)
def test_after_any_loss_repeat_and_restart_the_tree_says_what_the_engine_holds(
    history: list[tuple[int, str, int]],
) -> None:
    engine = Engine()
    listener = Listener(engine)
    for kind, fate, buffered in history:
        if fate == "restart":
            engine.held.clear()
            engine.batches.clear()
        engine.step(kind)
        seq = len(engine.batches) - 1
        if fate == "late-snapshot":  # it has the batch that the live stream brings right after
            listener.resync()
        for _ in range({"lost": 0, "twice": 2}.get(fate, 1)):
            listener.hear(seq, engine.batches[seq], max(0, seq - buffered))
    engine.step(1)
    seq = len(engine.batches) - 1
    listener.hear(seq, engine.batches[seq], seq)
    # A restart that lost nothing but its first batches shows only in what the numbers say: the
    # connection breaks then, and that resynchronises.
    if any(fate == "restart" for _, fate, _ in history):
        listener.resync()
    assert listener.tree.held_blocks(REPLICA) == len(engine.held)
    for hash in engine.held:
        text = b""
        above: int | None = hash
        while above is not None:
            event = engine.held[above]
            text = bytes(event.token_ids) + text
            above = event.parent_block_hash  # type: ignore[assignment]
        assert listener.tree.match((), text + b"\xff").confirmed[REPLICA].tokens == len(text)
