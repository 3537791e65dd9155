"""llm-d's endpoint picker: weighted scorers, the affinity filter, and the precise profile.

    score = 2 · queue + 2 · free KV cache + 3 · matched blocks / blocks      the most; any of equals

    queue         (max waiting - waiting) / (max - min); 1 where all are equal
    free KV cache 1 - share in use

Waiting and use are what engines reported when last asked; before that they count as nought. What
they hold is guessed: a list of blocks for each, of as many as its cache has, least recently used
out first. Blocks have 64 tokens or the engine's size if that is more, and only the first 131,072
tokens are looked at. With blocks of 16 tokens the guess thus is up to four times a cache.

Follows llm-d-router @ebab687: pkg/epp/config/loader/defaults.go, dataproducer/approximateprefix,
scheduling/scorer and scheduling/filter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from loadtests.sim.peers.block_names import full_blocks
from loadtests.sim.peers.block_table import BlocksByReplica
from loadtests.sim.peers.event_tree import EventTree
from loadtests.sim.peers.peer_router import PeerRouter
from loadtests.sim.request import SimRequest
from loadtests.sim.router import Load, ReplicaFacts
from protocol.kv_events import KvEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Of the queue, KV cache utilization and prefix cache scorers."""

    queue: float
    kv_cache: float
    prefix: float


# pkg/epp/config/loader/defaults.go.
DEFAULT_WEIGHTS = Weights(queue=2, kv_cache=2, prefix=3)

# The sample precise profile.
PRECISE_WEIGHTS = Weights(queue=1, kv_cache=1, prefix=2)

# approximateprefix/plugin.go: minBlockSizeTokens, maxPrefixTokensToMatch.
BLOCK_TOKENS_MIN = 64
PREFIX_TOKENS_MAX = 131_072

# --refresh-metrics-interval of the endpoint picker it grew out of; the notes only say that metrics
# count as stale after 200 ms.
POLL_INTERVAL_S = 0.05


class _Picker(PeerRouter):
    """What all profiles share: reports of load, and the picker of the highest score."""

    poll_interval_s: float | None = POLL_INTERVAL_S

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._waiting = [0] * len(replicas)
        self._used = [0.0] * len(replicas)

    def load(self, replica: int, load: Load, now: float) -> None:
        self._waiting[replica] = load.waiting
        self._used[replica] = load.held_tokens / self.replicas[replica].capacity_tokens

    def lost(self, replica: int, now: float) -> None:
        super().lost(replica, now)
        self._waiting[replica] = 0
        self._used[replica] = 0.0

    def weighted(self, weights: Weights, prefix_scores: Sequence[float]) -> list[float]:
        """By replica, the sum of its scores by their weights."""
        queue_scores = scores_of_queues(self._waiting)
        return [
            weights.queue * queue + weights.kv_cache * (1.0 - used) + weights.prefix * prefix
            for queue, used, prefix in zip(queue_scores, self._used, prefix_scores, strict=True)
        ]

    def pick(self, scores: Sequence[float], among: Iterable[int]) -> int:
        """max-score-picker: one of the highest of `among`, all as likely."""
        candidates = list(among)
        most = max(scores[one] for one in candidates)
        return self.rng.choice([one for one in candidates if scores[one] == most])


class LlmdWeighted(_Picker):
    """The default profile."""

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        # The picker asks the first engine for the block size.
        self._block_tokens = max(replicas[0].block_size, BLOCK_TOKENS_MIN)
        self.blocks = BlocksByReplica([one.capacity_tokens // one.block_size for one in replicas])

    def choose(self, request: SimRequest, now: float) -> int:
        names = self.names(request)
        counts = self.blocks.counts(names)
        replica = self.decide(request, [count / max(len(names), 1) for count in counts])
        self.blocks.insert(names, replica)
        return replica

    def decide(self, request: SimRequest, prefix_scores: Sequence[float]) -> int:
        scores = self.weighted(DEFAULT_WEIGHTS, prefix_scores)
        return self.pick(scores, range(len(scores)))

    def names(self, request: SimRequest) -> list[int]:
        blocks_max = PREFIX_TOKENS_MAX // self._block_tokens
        return list(islice(full_blocks(request.prompt, self._block_tokens), blocks_max))

    def check(self) -> None:
        super().check()
        self.blocks.check()


# filter/prefixcacheaffinity README: affinityThreshold, maxTTFTPenaltyMs, peakPrefillThroughput.
AFFINITY_THRESHOLD = 0.80
TTFT_PENALTY_MAX_S = 18.0
PEAK_PREFILL_THROUGHPUT = 15_928.0

# scorer/tokenload.
TOKEN_LOAD_MAX = 4_194_304


class LlmdAffinity(LlmdWeighted):
    """The affinity filter before the token load scorer: "sticky until saturated".

        sticky: matched blocks / blocks ≥ 0.80; if there are any, only they are candidates
        unless least TTFT of the sticky - least TTFT of the others > 18 s, TTFT = tokens / 15,928

        score = 1 - min(1, tokens / 4,194,304)                       the most; any of equals

    Tokens: those in flight there that its prefix list did not have when they were routed, until
    the end of their answers; for the score also this request's own. `explorationProbability` is 0.
    The composition is the one that the filter's README recommends for prefill-bound work.
    """

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._uncached: list[int] = []

    def decide(self, request: SimRequest, prefix_scores: Sequence[float]) -> int:
        prompt, tokens = len(request.prompt), self.in_flight.tokens
        covered = min(prompt // self._block_tokens * self._block_tokens, PREFIX_TOKENS_MAX)
        self._uncached = [prompt - round(score * covered) for score in prefix_scores]
        candidates = self.sticky(prefix_scores)
        scores = [
            1.0 - min(1.0, (held + own) / TOKEN_LOAD_MAX)
            for held, own in zip(tokens, self._uncached, strict=True)
        ]
        return self.pick(scores, candidates)

    def sticky(self, prefix_scores: Sequence[float]) -> list[int]:
        """The replicas that the filter leaves."""
        everybody = list(range(len(prefix_scores)))
        sticky = [one for one in everybody if prefix_scores[one] >= AFFINITY_THRESHOLD]
        others = [one for one in everybody if prefix_scores[one] < AFFINITY_THRESHOLD]
        if not sticky or not others:
            return everybody
        tokens = self.in_flight.tokens
        gap = min(tokens[one] for one in sticky) - min(tokens[one] for one in others)
        return everybody if gap / PEAK_PREFILL_THROUGHPUT > TTFT_PENALTY_MAX_S else sticky

    def weight(self, request: SimRequest, replica: int) -> int:
        return self._uncached[replica]


class LlmdPrecise(_Picker):
    """The sample precise profile: prefix 2, KV cache 1, queue 1; what is held comes from events.

    Its blocks are the engine's (the sample's 64 only where that is the engine's). Speculative
    entries for what was just routed are off, as by default.
    """

    hears_events = True

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self.tree = EventTree(replicas)

    def choose(self, request: SimRequest, now: float) -> int:
        blocks = max(len(request.prompt) // self.tree.block_tokens, 1)
        prefix_scores = [count / blocks for count in self.tree.match(request.prompt)]
        scores = self.weighted(PRECISE_WEIGHTS, prefix_scores)
        return self.pick(scores, range(len(scores)))

    def events(self, replica: int, events: Sequence[KvEvent], now: float) -> None:
        self.tree.apply(replica, events)

    def lost(self, replica: int, now: float) -> None:
        super().lost(replica, now)
        self.tree.clear(replica)

    def check(self) -> None:
        super().check()
        self.tree.check()


def scores_of_queues(waiting: Sequence[int]) -> list[float]:
    """queue-scorer: 1 for the shortest, 0 for the longest, 1 for all where they are equal."""
    least, most = min(waiting), max(waiting)
    if least == most:
        return [1.0] * len(waiting)
    return [(most - one) / (most - least) for one in waiting]
