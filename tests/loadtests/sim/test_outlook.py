"""The outlook says when the prompts that a replica has would all be computed: so it comes."""

from array import array
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import pytest

from loadtests.sim.outlook import outlook
from loadtests.sim.replica import FirstToken, Outcome, SimReplica
from loadtests.sim.request import SimRequest
from replica.core.timing import PRESETS

PRESET = PRESETS["h100-8b"]


class Clock:
    """One replica, and what is to happen to it."""

    def __init__(self) -> None:
        self.first_tokens_s: dict[int, float] = {}
        order = count()  # what is due at the same time is called in turn
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self.replica = SimReplica(
            preset=PRESET,
            block_size=16,
            cache_blocks=10_000,
            at=lambda when, then: heappush(self._due, (when, next(order), then)),
            outcomes=self._outcome,
            published=lambda events, now: None,
        )

    def _outcome(self, outcome: Outcome, now: float) -> None:
        if isinstance(outcome, FirstToken):
            self.first_tokens_s[outcome.request.number] = now

    def run(self, until_s: float) -> None:
        while self._due and self._due[0][0] <= until_s:
            when, _, then = heappop(self._due)
            then(when)

    def submit(self, number: int, tokens: int, now: float) -> None:
        prompt = array("I", range(number * 10**6, number * 10**6 + tokens))
        request = SimRequest(number=number, arrival_s=now, prompt=prompt, output_tokens=400)
        self.replica.submit(request, now)


@pytest.mark.parametrize("asked_s", [0.0, 0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("decoding", [0, 20])
def test_all_that_waits_is_computed_when_it_says(asked_s: float, decoding: int) -> None:
    clock = Clock()
    for number in range(decoding):
        clock.submit(number, 16, -1.0)
    clock.run(0.0)
    prompts = {100: 20_000, 101: 300, 102: 5_000}
    for number, tokens in prompts.items():
        clock.submit(number, tokens, 0.0)
    clock.run(asked_s)
    found = outlook(clock.replica, prompts, asked_s)
    clock.run(10.0)
    last_s = max(clock.first_tokens_s[number] for number in prompts)
    assert last_s > asked_s
    assert found.free_s == pytest.approx(last_s, rel=0.02)
