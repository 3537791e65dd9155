"""Every registered policy: it routes, repeats itself, and forgets no request in flight."""

from array import array
from collections.abc import Iterator
from random import Random

import pytest

from loadtests.sim.peers.peer_router import PeerRouter
from loadtests.sim.peers.registry import PEERS
from loadtests.sim.request import SimRequest
from loadtests.sim.router import Load
from protocol.kv_events import BlockRemoved, BlockStored
from tests.loadtests.sim.peer_setup import fleet, request

REPLICAS = 8
REQUESTS = 500


def conversations(seed: int) -> Iterator[SimRequest]:
    """Requests of 40 conversations that grow, some of them without a name, over three heads."""
    rng = Random(seed)
    heads = [[rng.randrange(1000) for _ in range(50)] for _ in range(3)]
    texts = [list(rng.choice(heads)) for _ in range(40)]
    for number in range(REQUESTS):
        which = rng.randrange(40)
        texts[which] += [rng.randrange(1000) for _ in range(rng.randrange(1, 40))]
        named = which if which % 4 else None
        yield request(number, texts[which], named, output_tokens=rng.randrange(1, 30))


class Fleet:
    """Stands for the engines: answers end in any order, caches fill, empty and are reported."""

    def __init__(self, router: PeerRouter, seed: int) -> None:
        self.router = router
        self.rng = Random(seed)
        self.running: list[tuple[SimRequest, int, bool]] = []
        self.stored: list[list[int]] = [[] for _ in range(REPLICAS)]
        self.hash = 0
        self.polled_at = 0.0
        self.choices: list[int] = []

    def serve(self, lost_at: int | None = None) -> None:
        now = 0.0
        for one in conversations(3):
            now += 0.4
            self.poll(now)
            replica = self.router.route(one, now)
            self.choices.append(replica)
            self.running.append((one, replica, False))
            self.cache(replica, one.prompt, now)
            while len(self.running) > 30 or (self.running and self.rng.random() < 0.6):
                self.go_on(now)
            if one.number == lost_at:
                self.lose(replica, now)
            if one.number % 50 == 0:
                self.router.check()
        while self.running:
            self.go_on(now)

    def go_on(self, now: float) -> None:
        """Some request says its first token, or ends."""
        place = self.rng.randrange(len(self.running))
        one, replica, said = self.running.pop(place)
        if said:
            self.router.done(one, replica, 0, now)
        else:
            self.router.first_token(one, replica, now)
            self.running.append((one, replica, True))

    def lose(self, replica: int, now: float) -> None:
        self.running = [one for one in self.running if one[1] != replica]
        self.stored[replica].clear()
        self.router.lost(replica, now)

    def cache(self, replica: int, prompt: "array[int]", now: float) -> None:
        if not self.router.hears_events:
            return
        blocks = len(prompt) // 4
        hashes = list(range(self.hash, self.hash + blocks))
        self.hash += blocks
        held = self.stored[replica]
        tokens = list(prompt[: blocks * 4])
        events = [
            BlockRemoved(block_hashes=held[:]),
            BlockStored(
                block_hashes=hashes, parent_block_hash=None, token_ids=tokens, block_size=4
            ),
        ]
        self.stored[replica] = hashes
        self.router.events(replica, events, now)

    def poll(self, now: float) -> None:
        interval_s = self.router.poll_interval_s
        if interval_s is None or now < self.polled_at + interval_s:
            return
        self.polled_at = now
        for replica in range(REPLICAS):
            there = [one for one, where, _ in self.running if where == replica]
            waiting = there[4:]
            report = Load(
                running=len(there) - len(waiting),
                waiting=len(waiting),
                waiting_tokens=sum(len(one.prompt) for one in waiting),
                held_tokens=min(sum(len(one.prompt) for one in there), 4000),
            )
            self.router.load(replica, report, now)


def served(name: str, lost_at: int | None = None) -> Fleet:
    router = PEERS[name](fleet(REPLICAS), Random(7))
    assert isinstance(router, PeerRouter)
    engines = Fleet(router, seed=11)
    engines.serve(lost_at)
    return engines


@pytest.mark.parametrize("name", PEERS)
def test_a_policy_routes_and_nothing_stays_in_flight(name: str) -> None:
    engines = served(name)
    assert set(engines.choices) <= set(range(REPLICAS))
    assert len(set(engines.choices)) > 1, "one replica alone would do for no policy here"
    engines.router.check()
    assert not any(engines.router.in_flight.requests)
    assert not any(engines.router.in_flight.tokens)
    assert not any(engines.router.in_flight.prefill_tokens)


@pytest.mark.parametrize("name", PEERS)
def test_the_same_inputs_make_the_same_choices(name: str) -> None:
    assert served(name).choices == served(name).choices


@pytest.mark.parametrize("name", PEERS)
def test_a_lost_replica_takes_its_requests_with_it(name: str) -> None:
    engines = served(name, lost_at=250)
    engines.router.check()
    assert not any(engines.router.in_flight.requests)


def test_the_designs_names_are_there() -> None:
    assert {
        "round_robin",
        "random",
        "least_requests",
        "least_tokens",
        "power_of_two",
        "session",
        "consistent_hash",
        "sglang_cache_aware",
        "dynamo_cost",
        "llmd_weighted",
    } <= PEERS.keys()
