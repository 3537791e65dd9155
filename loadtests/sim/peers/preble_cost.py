"""Preble's model of prefill time, its window of what was routed, and its detector of overload.

Follows WukLab/preble preble/global_scheduler_with_time.py and
preble/benchmarks/exp_configs/model_equations.py @2024-05-24. Constants are of Mistral-7B on an
A6000, which its scheduler imports whatever it runs on.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.sim.peers.token_radix import Node

WINDOW_S = 180.0

# Output tokens of a request that does not say how many it wants.
DECODE_LENGTH = 45


def prefill_s(tokens: int, context: int) -> float:
    """Seconds to prefill `tokens`, the last ones of a context of `context` tokens."""
    if tokens >= 384:
        linear_ms = 0.10842571 * tokens + 4.209777054806409
    elif tokens >= 192:
        linear_ms = -118 + 1.25 * tokens - 2.56e-3 * tokens**2
    else:
        linear_ms = 22.0
    attention_ms = 0.32
    if context > 1024:
        attention_ms = 1.86e-4 * context + 0.159
        if tokens <= 1024:
            attention_ms /= 2
    quadratic_ms = 0.0
    if tokens * context > 1024 * 1024:
        quadratic_ms = 1.13e-3 * tokens + 1.75e-3 * context + 2.19e-6 * tokens * context
    return (linear_ms + attention_ms + quadratic_ms) / 0.9 / 1e3


@dataclass(slots=True)
class Part:
    """What the scheduler knows of one node of its tree.

    Attributes:
        context: Tokens from the root to the node's end.
        active: By replica, requests in flight whose prompts go through it.
        allocated: Replicas that requests of this node go to; empty: ask the node above.
        outputs: Answer lengths, sorted.
    """

    context: int
    active: list[int]
    allocated: set[int] = field(default_factory=set)
    outputs: list[int] = field(default_factory=list)

    def output_length(self) -> float:
        return median(self.outputs) if self.outputs else DECODE_LENGTH

    def ended(self, output_tokens: int) -> None:
        insort(self.outputs, output_tokens)


@dataclass(slots=True, eq=False)
class Weight:
    """What a node weighs in the window: requests, their prompt tokens, and those that were hits."""

    node: Node
    requests: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0

    def miss_rate(self) -> float:
        return 1.0 - self.hit_tokens / self.prompt_tokens


@dataclass(frozen=True, slots=True)
class _Entry:
    at: float
    weight: Weight
    prompt_tokens: int
    hit_tokens: int


class Window:
    """What was routed in the last three minutes, by important node.

    Args:
        emptied: Called with each node that has left the window whole.
    """

    def __init__(self, emptied: Callable[[Node], None]) -> None:
        self.weights: dict[Node, Weight] = {}
        self._entries: deque[_Entry] = deque()
        self._emptied = emptied

    def add(self, node: Node, prompt_tokens: int, hit_tokens: int, now: float) -> None:
        weight = self.weights.setdefault(node, Weight(node))
        weight.requests += 1
        weight.prompt_tokens += prompt_tokens
        weight.hit_tokens += hit_tokens
        self._entries.append(_Entry(now, weight, prompt_tokens, hit_tokens))
        self._expire(now)

    def rename(self, old: Node, new: Node) -> None:
        """What `old` weighed is `new`'s from now on."""
        weight = self.weights.pop(old, None)
        if weight is not None:
            weight.node = new
            self.weights[new] = weight

    def _expire(self, now: float) -> None:
        while self._entries and self._entries[0].at < now - WINDOW_S:
            entry = self._entries.popleft()
            weight = entry.weight
            weight.requests -= 1
            weight.prompt_tokens -= entry.prompt_tokens
            weight.hit_tokens -= entry.hit_tokens
            if not weight.requests:
                del self.weights[weight.node]
                self._emptied(weight.node)


class OverloadDetector:
    """A node is overloaded at a replica where times to first token have doubled.

    That is: their mean in the window's second half is twice that in its first, or more.
    """

    def __init__(self) -> None:
        self._times: dict[tuple[Node, int], deque[tuple[float, float]]] = {}

    def add(self, node: Node, replica: int, ttft_s: float, now: float) -> None:
        times = self._times.setdefault((node, replica), deque())
        times.append((now, ttft_s))
        while times[0][0] < now - WINDOW_S:
            times.popleft()

    def rename(self, old: Node, new: Node, replica: int) -> None:
        times = self._times.pop((old, replica), None)
        if times is not None:
            self._times[new, replica] = times

    def forget(self, node: Node, replica: int) -> None:
        self._times.pop((node, replica), None)

    def overloaded(self, node: Node, replica: int, now: float) -> bool:
        times = self._times.get((node, replica), ())
        first = [ttft_s for at, ttft_s in times if at < now - WINDOW_S / 2]
        second = [ttft_s for at, ttft_s in times if at >= now - WINDOW_S / 2]
        if not first or not second:
            return False
        return sum(second) / len(second) >= 2 * sum(first) / len(first)


def median(ordered: list[int]) -> float:
    """Of a sorted list that is not empty."""
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[middle])
    return (ordered[middle - 1] + ordered[middle]) / 2
