"""Preble's global scheduler: exploit a long cached prefix, else explore by cost in seconds.

    exploit: cached part of the prompt > uncached part
             → the replicas allocated to the nearest node above that has any; of several, the
               least cost
    explore: else → the least cost of all

    cost of a replica = Σ over important nodes in the window that are allocated to it
        miss rate · requests · prefill_s(node's tokens, its context) / replicas of the node
        + requests in flight through it there · median answer length · median time per token

A prompt's important node is the lowest on its path with more tokens of its own than above it.
The part that is cached is what lies above the leaf in the tree: a prompt sent a second time whole
counts as uncached. After each choice, once 50 requests a replica were routed, nodes move from the
costliest replica to the cheapest while it costs 1.5 times as much or more; where there is but one,
it is replicated if it is overloaded.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from loadtests.sim.peers.block_names import token_bytes
from loadtests.sim.peers.peer_router import PeerRouter
from loadtests.sim.peers.preble_cost import OverloadDetector, Part, Window, prefill_s
from loadtests.sim.peers.token_radix import Node, Split, TokenRadix
from loadtests.sim.request import SimRequest
from loadtests.sim.router import ReplicaFacts

HIGH_LOAD_THRESHOLD = 1.5
# A replica.
REQUESTS_BEFORE_REBALANCING = 50
REBALANCED_NODE_REQUESTS_MIN = 2
INITIAL_TIME_PER_TOKEN_S = 0.15
TIMES_PER_TOKEN_KEPT = 200


@dataclass(slots=True)
class _Times:
    replica: int
    prompt: bytes
    routed_at: float
    first_token_at: float | None = None


class Preble(PeerRouter):
    """E2 scheduling, with rebalancing and without simulated evictions, as its constructor has it.

    Follows WukLab/preble preble/global_scheduler_with_time.py @2024-05-24, with two plain readings:
    the least cost among several allocated replicas means that replica, not its place among them
    (a slip in the file), and answer lengths are learned (that line is commented out in one state
    of it, whose lengths stay at 45). Of equal costs the first. A restart is nothing it knows of:
    what was in flight there ends, allocations stay.
    """

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._radix = TokenRadix()
        self._parts: dict[Node, Part] = {}
        self.window = Window(self._left_window)
        self._overload = OverloadDetector()
        self._routed = 0
        self._times: dict[int, _Times] = {}
        self._times_per_token_s: list[deque[float]] = [
            deque([INITIAL_TIME_PER_TOKEN_S], TIMES_PER_TOKEN_KEPT) for _ in replicas
        ]

    def choose(self, request: SimRequest, now: float) -> int:
        data = token_bytes(request.prompt)
        leaf = self._insert(data)
        part = self._parts[leaf]
        cached = part.context - leaf.tokens
        if leaf.tokens < cached:
            candidates = self._allocated_at_or_above(leaf)
        else:
            candidates = set(range(len(self.replicas)))
        costs = self.costs()
        replica = min(sorted(candidates), key=costs.__getitem__)
        self.window.add(self._important(leaf), part.context, cached, now)
        for node in _upwards(leaf):
            self._parts[node].allocated.add(replica)
            self._parts[node].active[replica] += 1
        self._routed += 1
        self._times[request.number] = _Times(replica, data, now)
        if self._routed >= REQUESTS_BEFORE_REBALANCING * len(self.replicas):
            self._rebalance(now)
        return replica

    def first_token(self, request: SimRequest, replica: int, now: float) -> None:
        super().first_token(request, replica, now)
        self._times[request.number].first_token_at = now

    def done(self, request: SimRequest, replica: int, cached_tokens: int, now: float) -> None:
        super().done(request, replica, cached_tokens, now)
        times = self._times.pop(request.number)
        leaf = self._release(times)
        if times.first_token_at is None:
            return
        node = self._important(leaf)
        self._overload.add(node, replica, times.first_token_at - times.routed_at, now)
        if request.output_tokens > 1:
            self._parts[node].ended(request.output_tokens)
            per_token_s = (now - times.first_token_at) / (request.output_tokens - 1)
            if per_token_s > 0:
                self._times_per_token_s[replica].append(per_token_s)

    def lost(self, replica: int, now: float) -> None:
        for number in self.in_flight.lost(replica):
            self._release(self._times.pop(number))

    def costs(self, requests_min: int = 1) -> list[float]:
        """By replica, in seconds, of nodes with at least so many requests in the window."""
        costs = [0.0] * len(self.replicas)
        per_token_s = [median(times) for times in self._times_per_token_s]
        for node, weight in self.window.weights.items():
            if weight.requests >= requests_min:
                for replica in self._parts[node].allocated:
                    costs[replica] += self._cost(node, replica, per_token_s[replica])
        return costs

    def check(self) -> None:
        super().check()
        for node, part in self._parts.items():
            assert part.context == sum(above.tokens for above in _upwards(node))
            through = [
                times for times in self._times.values() if times.prompt.startswith(_text(node))
            ]
            for replica, active in enumerate(part.active):
                assert active == sum(times.replica == replica for times in through)

    def _cost(self, node: Node, replica: int, per_token_s: float) -> float:
        part, weight = self._parts[node], self.window.weights[node]
        prefill = weight.miss_rate() * weight.requests * prefill_s(node.tokens, part.context)
        decode = part.active[replica] * part.output_length() * per_token_s
        return prefill / len(part.allocated) + decode

    def _insert(self, data: bytes) -> Node:
        """The node where `data` ends, with all on its path known."""
        path, split = self._radix.insert(data)
        if split is not None:
            self._split(split)
        context = 0
        for node in path:
            context += node.tokens
            if node not in self._parts:
                self._parts[node] = Part(context, [0] * len(self.replicas))
        return path[-1]

    def _split(self, split: Split) -> None:
        """The upper node begins as the lower one; the window follows whichever is important."""
        lower = self._parts[split.lower]
        upper = Part(lower.context - split.lower.tokens, list(lower.active), set(lower.allocated))
        self._parts[split.upper] = upper
        if self._is_large(split.upper) and not self._is_large(split.lower):
            self.window.rename(split.lower, split.upper)
            upper.outputs, lower.outputs = lower.outputs, upper.outputs
            for replica in upper.allocated:
                self._overload.rename(split.lower, split.upper, replica)

    def _release(self, times: _Times) -> Node:
        """One request fewer is active on its path. Returns: the path's end."""
        leaf, _ = self._radix.find(times.prompt)
        for node in _upwards(leaf):
            self._parts[node].active[times.replica] -= 1
        return leaf

    def _is_large(self, node: Node) -> bool:
        return node.tokens > self._parts[node].context - node.tokens

    def _important(self, leaf: Node) -> Node:
        # The first node below the root has nothing above it, so there is one.
        return next(node for node in _upwards(leaf) if self._is_large(node))

    def _allocated_at_or_above(self, leaf: Node) -> set[int]:
        for node in _upwards(leaf):
            if self._parts[node].allocated:
                return set(self._parts[node].allocated)
        return set(range(len(self.replicas)))

    def _left_window(self, node: Node) -> None:
        self._parts[node].allocated = set()

    def _rebalance(self, now: float) -> None:
        """From the costliest replica to the cheapest; then the same without the costliest."""
        costs = self.costs(REBALANCED_NODE_REQUESTS_MIN)
        order = sorted(range(len(costs)), key=lambda one: -costs[one])
        cheapest = order[-1]
        for costliest in order[:-1]:
            if costs[costliest] < HIGH_LOAD_THRESHOLD * costs[cheapest]:
                return
            nodes = self._movable(costliest)
            if len(nodes) == 1:
                self._replicate(nodes[0][1], nodes[0][0], costliest, cheapest, costs, now)
                continue
            for cost, node in nodes:
                if costs[costliest] - cost < costs[cheapest] + cost:
                    break
                costs[costliest] -= cost
                costs[cheapest] += cost
                self._move(node, cheapest)
                if costs[costliest] < HIGH_LOAD_THRESHOLD * costs[cheapest]:
                    break

    def _movable(self, replica: int) -> list[tuple[float, Node]]:
        """Nodes of the window that are allocated there and were asked for twice; cheapest first."""
        per_token_s = median(self._times_per_token_s[replica])
        nodes = [
            (self._cost(node, replica, per_token_s), node)
            for node, weight in self.window.weights.items()
            if replica in self._parts[node].allocated
            and self._is_large(node)
            and weight.requests >= REBALANCED_NODE_REQUESTS_MIN
        ]
        return sorted(nodes, key=lambda one: one[0])

    def _replicate(
        self,
        node: Node,
        cost: float,
        costliest: int,
        cheapest: int,
        costs: list[float],
        now: float,
    ) -> None:
        allocated = self._parts[node].allocated
        if cheapest in allocated or not self._overload.overloaded(node, costliest, now):
            return
        costs[costliest] -= cost / 2
        costs[cheapest] += cost / 2
        allocated.add(cheapest)
        self._overload.forget(node, costliest)

    def _move(self, top: Node, replica: int) -> None:
        for node in _downwards(top):
            self._parts[node].allocated = {replica}


def _upwards(node: Node) -> Iterator[Node]:
    """The node and all above it but the root."""
    while node.parent is not None:
        yield node
        node = node.parent


def _downwards(top: Node) -> Iterable[Node]:
    nodes = [top]
    for node in nodes:
        nodes.extend(node.children.values())
    return nodes


def _text(node: Node) -> bytes:
    return b"".join(reversed([above.edge for above in _upwards(node)]))
