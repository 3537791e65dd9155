"""How late a replica's KV events come is learned, and predictions live until they do."""

import pytest

from router.core.event_delay import probe_end
from router.core.predictions import Predictions, RoutedPrompt
from router.core.prefix_tree import PrefixTree

GRACE_S, TTL_S = 0.25, 60.0
BLOCK = 16  # bytes, a byte a token
PROMPT_BYTES = 10 * BLOCK + 5


class Replica:
    """One whose prompts are computed as soon as they are routed, and what is predicted of it."""

    def __init__(self) -> None:
        self.tree = PrefixTree()
        self.predictions = Predictions(self.tree, {}, ttl_s=TTL_S, grace_s=GRACE_S)

    def computes(self, number: int, now: float) -> RoutedPrompt:
        routed = self._routed(prompt_of(number), now)
        self.predictions.computed(routed, now)
        return routed

    def _routed(self, prompt: bytes, now: float) -> RoutedPrompt:
        end = probe_end(len(prompt), len(prompt), BLOCK, 1.0)
        assert 0 < end < 10 * BLOCK
        return self.predictions.routed("r", (), prompt, now, end)

    def events_say(self, number: int, now: float) -> None:
        prompt = prompt_of(number)
        texts = [prompt[at : at + BLOCK] for at in range(0, 10 * BLOCK, BLOCK)]
        hashes = [number * 100 + index for index in range(10)]
        self.tree.store("r", (), hashes, None, texts, BLOCK)
        self.predictions.expire(now)

    def is_predicted(self, number: int, now: float) -> bool:
        self.predictions.expire(now)
        prompt = prompt_of(number)
        return self.tree.match((), prompt + b"?").predicted.get("r") == len(prompt)


def prompt_of(number: int) -> bytes:
    return f"{number:03}:".encode().ljust(PROMPT_BYTES, b"x")


@pytest.mark.parametrize(
    ("uncached_tokens", "found"),
    [
        pytest.param(1000, 2000 - 3 * 32, id="all is new: three blocks before the end"),
        pytest.param(64, 2000 - 3 * 32, id="just enough is new"),
        pytest.param(63, 0, id="the last blocks might be partial"),
        pytest.param(0, 0, id="nothing is new"),
    ],
)
def test_a_probe_ends_in_what_is_new_and_surely_whole(uncached_tokens: int, found: int) -> None:
    assert probe_end(2000, uncached_tokens, 16, 2.0) == found


def test_events_in_time_end_a_prediction_after_the_grace() -> None:
    replica = Replica()
    for number in range(30):
        now = float(number)
        replica.computes(number, now)
        replica.events_say(number, now + 0.1)
        assert replica.is_predicted(number, now + 0.9 * GRACE_S)
        assert not replica.is_predicted(number, now + 1.1 * GRACE_S)
    assert replica.predictions.event_delay_s("r") <= GRACE_S


def test_what_events_have_not_confirmed_yet_stays_predicted_until_they_do() -> None:
    replica = Replica()
    for number in range(5):
        replica.computes(number, float(number))
    assert all(replica.is_predicted(number, 4.9) for number in range(5))
    replica.events_say(0, 5.0)
    assert replica.predictions.event_delay_s("r") == pytest.approx(5.0, abs=0.1)
    # From now on events may be about this late, though no probe is out.
    replica.computes(9, 30.0)
    replica.events_say(9, 30.1)
    replica.computes(10, 30.5)
    assert replica.is_predicted(10, 30.5 + 7.0)
    assert not replica.is_predicted(10, 30.5 + 11.0)


def test_the_end_of_an_answer_tells_nothing_of_the_delay() -> None:
    """By then the events have come, however late."""
    replica = Replica()
    first, second = replica.computes(0, 0.0), replica.computes(1, 0.5)
    replica.events_say(0, 5.0)
    replica.events_say(1, 5.5)
    for routed in (first, second):
        for ended_at in (8.0, 10.0):
            replica.predictions.answered(
                routed,
                prompt_tokens=PROMPT_BYTES,
                completion_tokens=1,
                cached_tokens=0,
                bytes_per_token=1.0,
                now=ended_at,
            )
    assert replica.predictions.event_delay_s("r") == pytest.approx(5.0, abs=0.1)


def test_a_replica_whose_events_are_in_time_again_is_believed_to_be() -> None:
    replica = Replica()
    replica.computes(0, 0.0)
    replica.events_say(0, 5.0)
    for number in range(1, 30):
        replica.computes(number, 5.0 + 2 * number)
        replica.events_say(number, 5.1 + 2 * number)
    replica.computes(99, 100.0)
    replica.events_say(99, 100.1)
    assert not replica.is_predicted(99, 100.0 + 1.1 * GRACE_S)


def test_a_prompt_whose_events_never_come_holds_up_nothing_once_later_ones_have() -> None:
    replica = Replica()
    replica.computes(0, 0.0)  # evicted at once, or not cached
    for number in range(1, 10):
        replica.computes(number, float(number))
        replica.events_say(number, number + 0.1)
    assert not replica.is_predicted(0, 9.5)
    assert not replica.is_predicted(9, 9.5)
    assert replica.predictions.event_delay_s("r") < 1.5


def test_no_event_at_all_is_waited_for_no_longer_than_the_ttl() -> None:
    replica = Replica()
    for number in range(200):
        replica.computes(number, float(number))
        replica.predictions.expire(float(number))
    assert not any(replica.is_predicted(number, 199.0) for number in range(135))
    assert replica.is_predicted(199, 199.0)
    replica.predictions.expire(199.0 + TTL_S)
    assert not replica.tree.match((), prompt_of(199) + b"?").predicted
    assert replica.predictions.event_delay_s("r") == 0.0


def test_a_cleared_replica_leaves_no_probe() -> None:
    replica = Replica()
    replica.computes(0, 0.0)
    replica.tree.clear("r")
    replica.computes(1, 2.0)
    replica.events_say(1, 2.1)
    assert not replica.is_predicted(1, 2.0 + 4.1)
    replica.tree.check()
