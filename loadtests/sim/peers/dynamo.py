"""NVIDIA Dynamo's KV router: the fewest blocks to prefill and to hold, with credit for overlap.

    raw prefill blocks = (active prefill tokens + prompt tokens) / block size
    cost               = prefill_load_scale · max(raw prefill blocks - credit · overlap blocks, 0)
                         + decode blocks + decode_active_request_weight · active requests

    decode blocks: distinct blocks of the prompts in flight there, this prompt's among them

The least cost wins, of equals any. With a temperature, a replica is drawn by
softmax(-cost / (temperature · (max - min))). Overlap comes from KV events alone; what was just
routed is not predicted (`--router-predicted-ttl-secs` is off). A request's prefill counts what the
overlap left of its prompt, until its first token; its blocks count until its end, those of its
answer not (`track_output_blocks` is off). No queue before the choice: it is off too.
"""

from collections.abc import Iterable, Sequence
from math import exp
from random import Random

from loadtests.sim.peers.block_names import full_blocks
from loadtests.sim.peers.event_tree import EventTree
from loadtests.sim.peers.peer_router import PeerRouter, any_least
from loadtests.sim.request import SimRequest
from loadtests.sim.router import ReplicaFacts
from protocol.kv_events import KvEvent

# lib/kv-router/src/scheduling/config.rs; docs router-configuration.md @057096c.
OVERLAP_SCORE_CREDIT = 1.0
PREFILL_LOAD_SCALE = 1.0
DECODE_ACTIVE_REQUEST_WEIGHT = 0.0
ROUTER_TEMPERATURE = 0.0


class ActiveBlocks:
    """Blocks of the prompts in flight at one replica, each counted once however many share it."""

    def __init__(self) -> None:
        self._uses: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def new_among(self, names: Sequence[int]) -> int:
        """How many of a prompt's blocks, in order, would be new.

        Who has a block has all those before it, so that halving finds where the known ones end.
        """
        low, high = 0, len(names)
        while low < high:
            middle = (low + high) // 2
            if names[middle] in self._uses:
                low = middle + 1
            else:
                high = middle
        return len(names) - low

    def add(self, names: Iterable[int]) -> None:
        uses = self._uses
        for name in names:
            uses[name] = uses.get(name, 0) + 1

    def remove(self, names: Iterable[int]) -> None:
        uses = self._uses
        for name in names:
            left = uses[name] - 1
            if left:
                uses[name] = left
            else:
                del uses[name]


class DynamoCost(PeerRouter):
    """The default selector.

    Follows ai-dynamo/dynamo lib/kv-router/src/scheduling/selector/default.rs @07a6c9c and
    sequences/. `overlap_score_credit_decay` is 0 and left out, as are host, disk and shared
    credits: there is GPU memory only.

    Args:
        temperature: `router_temperature`.
    """

    hears_events = True

    def __init__(
        self,
        replicas: Sequence[ReplicaFacts],
        rng: Random,
        temperature: float = ROUTER_TEMPERATURE,
    ) -> None:
        super().__init__(replicas, rng)
        self.tree = EventTree(replicas)
        self.active = [ActiveBlocks() for _ in replicas]
        self._temperature = temperature
        self._overlaps: list[int] = []
        # By request: where it is, and its prompt's blocks.
        self._names: dict[int, tuple[int, list[int]]] = {}

    def choose(self, request: SimRequest, now: float) -> int:
        names = list(full_blocks(request.prompt, self.tree.block_tokens))
        self._overlaps = self.tree.match_names(names)
        costs = self.costs(len(request.prompt), names, self._overlaps)
        if self._temperature > 0:
            replica = drawn_by_softmax(costs, self._temperature, self.rng)
        else:
            replica = any_least(costs, self.rng)
        self.active[replica].add(names)
        self._names[request.number] = (replica, names)
        return replica

    def costs(self, prompt: int, names: Sequence[int], overlaps: Sequence[int]) -> list[float]:
        """By replica, in blocks.

        Args:
            prompt: Tokens.
            names: Of its full blocks.
            overlaps: By replica, how many of those it holds.
        """
        costs = []
        for one, overlap in enumerate(overlaps):
            raw = (self.in_flight.prefill_tokens[one] + prompt) / self.tree.block_tokens
            prefill = max(raw - OVERLAP_SCORE_CREDIT * overlap, 0.0)
            decode = len(self.active[one]) + self.active[one].new_among(names)
            requests = DECODE_ACTIVE_REQUEST_WEIGHT * self.in_flight.requests[one]
            costs.append(PREFILL_LOAD_SCALE * prefill + decode + requests)
        return costs

    def weight(self, request: SimRequest, replica: int) -> int:
        return len(request.prompt) - self._overlaps[replica] * self.tree.block_tokens

    def done(self, request: SimRequest, replica: int, cached_tokens: int, now: float) -> None:
        super().done(request, replica, cached_tokens, now)
        self._release(request.number)

    def events(self, replica: int, events: Sequence[KvEvent], now: float) -> None:
        self.tree.apply(replica, events)

    def lost(self, replica: int, now: float) -> None:
        for number in self.in_flight.lost(replica):
            self._release(number)
        self.tree.clear(replica)

    def check(self) -> None:
        super().check()
        self.tree.check()
        for replica, active in enumerate(self.active):
            there = [names for where, names in self._names.values() if where == replica]
            assert len(active) == len({name for names in there for name in names})

    def _release(self, number: int) -> None:
        replica, names = self._names.pop(number)
        self.active[replica].remove(names)


def drawn_by_softmax(costs: Sequence[float], temperature: float, rng: Random) -> int:
    """An index, drawn with probability ~ exp(-(cost - min) / ((max - min) · temperature))."""
    least, most = min(costs), max(costs)
    if least == most:
        return rng.randrange(len(costs))
    scale = (most - least) * temperature
    weights = [exp((least - cost) / scale) for cost in costs]
    return rng.choices(range(len(costs)), weights)[0]
