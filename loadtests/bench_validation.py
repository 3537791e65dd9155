"""The simulator beside what it simulates: the same requests to real replicas, and in virtual time.

`make bench-validation`: two replicas with the embedded model on a core each, behind the router,
answer a load of documents over HTTP, and the simulator answers it with the same schedulers, caches
and policy. How long its steps take is fitted to those that the replicas logged meanwhile: steps
measured by themselves are a tenth faster, and a shared machine changes its pace within minutes.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mean

import msgspec

from loadtests.overhead.processes import NotStarted, Running
from loadtests.peers.contestants import CONTESTANTS
from loadtests.peers.fleet import BLOCK_SIZE, Fleet, FleetFailed, start_fleet
from loadtests.peers.load import FIRST_CHAT, Answered, Words, offer, plan_of
from loadtests.provenance import say, write_results
from loadtests.quantiles import quantile
from loadtests.sim.fit import fit
from loadtests.sim.measure import logged
from loadtests.sim.ours import Ours
from loadtests.sim.report import markdown
from loadtests.sim.request import SimRequest
from loadtests.sim.workloads.registry import build
from loadtests.sim.workloads.workload import generate
from loadtests.sim.world import ReplicaSpec, Served, simulate
from replica.core.timing import Preset, Timing

_SMALL_DOCUMENTS = {
    "document_tokens": "500",
    "document_tokens_max": "2000",
    "answer_tokens": "12",
    "gap_s": "15",
}
_REPLICAS = 2
_CACHE_BLOCKS = 256
_BATCHED_TOKENS, _RUNNING = 512, 32
_CONTEXT = 4096


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One load; pairs are (real, simulated).

    Attributes:
        first_p50_s, first_p90_s, first_mean_s: Time to first token, from when a request was due.
        hit: Share of prompt tokens that were cached.
        late_s: How late the load generator was at worst.
    """

    requests_per_s: float
    requests: int
    first_p50_s: tuple[float, float]
    first_p90_s: tuple[float, float]
    first_mean_s: tuple[float, float]
    hit: tuple[float, float]
    late_s: float


def main(arguments: Sequence[str]) -> int:
    """0; 1 when the replicas or the router do not run, or a request failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.8, 1.6], metavar="R")
    parser.add_argument("--requests", type=int, default=120, metavar="N", help="of each rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    chosen = parser.parse_args(arguments)
    words = Words.of_model()
    rows, timings = [], []
    try:
        with (
            tempfile.TemporaryDirectory(prefix="bench-validation-") as folder,
            ExitStack() as stack,
        ):
            directory = Path(folder)
            steps = directory / "steps.jsonl"
            engine = {
                "backend": "torch",
                "threads": 1,
                "kv_cache_blocks": _CACHE_BLOCKS,
                "max_batched_tokens": _BATCHED_TOKENS,
                "max_running_sequences": _RUNNING,
                "step_log": str(steps),  # of both
            }
            fleet = start_fleet(stack, directory, _REPLICAS, engine, _CONTEXT)
            for number, rate in enumerate(chosen.rates):
                say(f"{rate:g} requests/s")
                workload = build("documents", _SMALL_DOCUMENTS)
                requests = list(
                    generate(workload, seed=chosen.seed, requests_per_s=rate, count=chosen.requests)
                )
                before = len(logged([steps]))
                real = _real(requests, words, fleet, directory / f"router-{number}")
                taken = logged([steps])[before:]
                timing = fit(taken)
                timings.append(timing)
                rows.append(_row(rate, real, simulated(requests, timing, chosen.seed)))
    except (FleetFailed, NotStarted, AnswerFailed) as error:
        say(f"bench-validation: {error}")
        return 1
    print("\n".join(lines_of(rows)))
    if chosen.json:
        write_results(chosen.json, {"timings": timings, "rows": rows})
    return 0


class AnswerFailed(Exception):
    """A real request was not answered: says how."""


def _real(
    requests: Sequence[SimRequest], words: Words, fleet: Fleet, directory: Path
) -> list[Answered]:
    """Raises FleetFailed, NotStarted, AnswerFailed."""
    fleet.empty()
    plan = plan_of(requests, words, ignore_eos=True)
    with ExitStack() as stack:
        router = Running(stack, CONTESTANTS[0], directory, fleet.ports)
        router.wait_until_answering(FIRST_CHAT)
        answers = asyncio.run(offer(f"http://127.0.0.1:{router.port}", plan))
    for answer in answers:
        if answer.error is not None:
            raise AnswerFailed(answer.error)
    return answers


def simulated(requests: Sequence[SimRequest], timing: Timing, seed: int) -> list[Served]:
    """The same, in virtual time; they begin when the first comes."""
    preset = Preset(
        timing=timing,
        cache_tokens=_CACHE_BLOCKS * BLOCK_SIZE,
        max_batched_tokens=_BATCHED_TOKENS,
        max_running=_RUNNING,
    )
    spec = ReplicaSpec(preset=preset, block_size=BLOCK_SIZE)
    return simulate(iter(requests), Ours, [spec] * _REPLICAS, seed).served


def _row(rate: float, real: Sequence[Answered], virtual: Sequence[Served]) -> Row:
    firsts = (
        sorted(one.first_s for one in real if one.first_s is not None),
        sorted(one.first_token_s for one in virtual if one.first_token_s is not None),
    )
    tokens = [sum(one.prompt_tokens for one in side) for side in (real, virtual)]
    cached = [sum(one.cached_tokens for one in side) for side in (real, virtual)]

    def both(share: float) -> tuple[float, float]:
        return quantile(firsts[0], share), quantile(firsts[1], share)

    return Row(
        requests_per_s=rate,
        requests=len(real),
        first_p50_s=both(0.5),
        first_p90_s=both(0.9),
        first_mean_s=(mean(firsts[0]), mean(firsts[1])),
        hit=(cached[0] / tokens[0], cached[1] / tokens[1]),
        late_s=max(one.late_s for one in real),
    )


def lines_of(rows: Sequence[Row]) -> list[str]:
    """A table: what was measured, what the simulator says, and its error."""
    headings = ["requests/s", "what", "real", "simulated", "error"]
    cells = []
    for row in rows:
        for what, (real, virtual) in (
            ("TTFT p50, s", row.first_p50_s),
            ("TTFT p90, s", row.first_p90_s),
            ("TTFT mean, s", row.first_mean_s),
        ):
            error = f"{virtual / real - 1:+.0%}"
            cells.append([f"{row.requests_per_s:g}", what, f"{real:.3f}", f"{virtual:.3f}", error])
        hits = [f"{one:.1%}" for one in row.hit]
        cells.append([f"{row.requests_per_s:g}", "hit tokens", *hits, ""])
    return markdown(headings, cells)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
