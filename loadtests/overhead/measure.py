"""The measurements: contestants in turns under the same load; ours alone where only it is asked."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from loadtests.overhead import process_tree
from loadtests.overhead.cases import CASES, PLAIN, Case
from loadtests.overhead.contestants import OURS, Contestant, ours
from loadtests.overhead.orders import Closed, Idle, LetGo, Open
from loadtests.overhead.processes import (
    LoadGenerator,
    NotStarted,
    Running,
    metric,
    start_replicas,
)
from loadtests.overhead.scores import Added, IdleCost, Round, ScalePoint, Score, Scores
from loadtests.provenance import say

REPLICAS = 2
# Of four blocks each, all replicas together: what a few busy engines say.
EVENT_BATCHES_PER_S = 100.0
# Replicas, and workers of the router.
SCALE = ((2, 1), (16, 1), (64, 1), (256, 1), (2, 2))


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured. An open loop needs more connections: its requests do not wait."""

    warm_up_s: float = 0.5
    unasked_s: float = 3.0
    rounds: int = 3
    round_s: float = 1.5
    connections: int = 32
    open_connections: int = 64
    open_rounds: int = 4
    open_s: float = 2.5
    idle_connections: int = 10_000
    cases: tuple[Case, ...] = CASES


QUICK = Amount(
    warm_up_s=0.1,
    unasked_s=0.2,
    rounds=1,
    round_s=0.1,
    connections=4,
    open_connections=4,
    open_rounds=1,
    open_s=0.2,
    idle_connections=50,
)


class Bench:
    """Replicas, load generator and contestants, all running until the block is left."""

    def __init__(self, stack: ExitStack, amount: Amount, replicas: int = REPLICAS) -> None:
        self._stack = stack
        self._amount = amount
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._replicas = start_replicas(stack, replicas, EVENT_BATCHES_PER_S)
        self._generator = LoadGenerator(stack)
        self._running: dict[str, Running] = {}

    def start(self, contestants: Sequence[Contestant]) -> dict[str, str]:
        """Starts all at once, waits for each, warms them up. Returns who does not run, and why."""
        started = [
            Running(self._stack, one, self._directory / one.name.replace(" ", "-"), self._replicas)
            for one in contestants
        ]
        absent = {}
        for running in started:
            name = running.contestant.name
            try:
                running.wait_until_answering()
            except NotStarted as error:
                absent[name] = str(error)
            else:
                self._running[name] = running
                self._closed(running, PLAIN, self._amount.warm_up_s)
                say(f"  {name} runs")
        return absent

    def contest(self) -> Scores:
        """All cases in every round, so that no busy minute of the machine spoils a case."""
        rounds: dict[str, dict[str, list[Round]]] = {
            case.name: {name: [] for name in self._running} for case in self._amount.cases
        }
        for number in range(self._amount.rounds):
            for case in self._amount.cases:
                say(f"round {number + 1}: {case.name}")
                for name, running in self._running.items():
                    if number == 0 or not running.contestant.slow:
                        done = self._closed(running, case, self._amount.round_s)
                        rounds[case.name][name].append(done)
        return {
            case: {name: Score(rounds=some) for name, some in by_name.items()}
            for case, by_name in rounds.items()
        }

    def added_latency(self, rate_per_s: float) -> Added:
        """An open loop at that rate, in turns to a stand-in and to our router."""
        say(f"latency at {rate_per_s:,.0f} requests/s")
        ports = {"direct": self._replicas[0][0], "through": self._running[OURS].port}
        p50_s: dict[str, list[float]] = {name: [] for name in ports}
        p99_s: dict[str, list[float]] = {name: [] for name in ports}
        errors = 0
        for number in range(self._amount.open_rounds):
            for name, port in ports.items():
                order = Open(
                    port=port,
                    case=PLAIN,
                    connections=self._amount.open_connections,
                    seconds=self._amount.open_s,
                    rate_per_s=rate_per_s,
                    seed=number,
                )
                done = self._generator.tell(order)
                p50_s[name].append(done.p50_s)
                p99_s[name].append(done.p99_s)
                errors += done.errors
        return Added(
            rate_per_s=rate_per_s,
            direct_p50_s=min(p50_s["direct"]),
            direct_p99_s=min(p99_s["direct"]),
            through_p50_s=min(p50_s["through"]),
            through_p99_s=min(p99_s["through"]),
            errors=errors,
        )

    def idle_cost(self) -> IdleCost:
        """What idle connections cost our router. Only of a bench that has just been started."""
        running, connections = self._running[OURS], self._amount.idle_connections
        say(f"{connections:,} idle connections")
        before = process_tree.resident_bytes(running.pid)
        done = self._generator.tell(Idle(port=running.port, connections=connections))
        after = process_tree.resident_bytes(running.pid)
        self._generator.tell(LetGo())
        return IdleCost(
            connections=connections, before_bytes=before, after_bytes=after, errors=done.errors
        )

    def unasked(self) -> dict[str, float]:
        """The share of a core that each contestant takes without requests."""
        seconds = self._amount.unasked_s
        before_s = {name: process_tree.cpu_s(one.pid) for name, one in self._running.items()}
        time.sleep(seconds)
        return {
            name: (process_tree.cpu_s(one.pid) - before_s[name]) / seconds
            for name, one in self._running.items()
        }

    def scale_point(self, workers: int) -> ScalePoint:
        """What a request costs our router among so many replicas, and what they cost unasked."""
        running = self._running[OURS]
        unasked = self.unasked()[OURS]
        rounds = [
            self._closed(running, PLAIN, self._amount.round_s) for _ in range(self._amount.rounds)
        ]
        return ScalePoint(
            replicas=len(self._replicas),
            workers=workers,
            score=Score(rounds=rounds),
            unasked=unasked,
        )

    def knowledge(self) -> dict[str, float]:
        """What our router knows by KV events now: how many replicas it follows, what they cache."""
        port = self._running[OURS].other_port
        return {
            "followed": sum(metric(port, "warmroute_kv_events_synced").values()),
            "cached_tokens": sum(metric(port, "warmroute_replica_cached_tokens").values()),
        }

    def _closed(self, running: Running, case: Case, seconds: float) -> Round:
        order = Closed(
            port=running.port, case=case, connections=self._amount.connections, seconds=seconds
        )
        before_s = process_tree.cpu_s(running.pid)
        done = self._generator.tell(order)
        used_s = process_tree.cpu_s(running.pid) - before_s
        return Round(
            requests=done.requests,
            requests_per_s=(done.requests - done.errors) / done.seconds,
            p50_s=done.p50_s,
            p99_s=done.p99_s,
            cpu_s=used_s / max(done.requests, 1),
            generator_busy=done.busy,
            reads_per_answer=done.reads_per_answer,
            errors=done.errors,
            error=done.error,
        )


def measure_idle(amount: Amount) -> IdleCost:
    """Of a router that has served a little and nobody else has used."""
    with ExitStack() as stack:
        bench = Bench(stack, amount)
        _must_run(bench.start([ours()]))
        return bench.idle_cost()


def measure_scaling(amount: Amount, sizes: Sequence[tuple[int, int]] = SCALE) -> list[ScalePoint]:
    """One router after the other, with more and more replicas, then with more workers."""
    points = []
    for replicas, workers in sizes:
        say(f"{replicas} replicas, {workers} workers")
        with ExitStack() as stack:
            bench = Bench(stack, amount, replicas)
            _must_run(bench.start([ours(workers)]))
            points.append(bench.scale_point(workers))
    return points


def _must_run(absent: Mapping[str, str]) -> None:
    for name, reason in absent.items():
        raise NotStarted(f"{name}: {reason}")
