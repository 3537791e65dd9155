"""Our policy beside its peers and an oracle, point by point: `make bench-routing`."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from loadtests.provenance import ROOT, commit, machine, say
from loadtests.routing_bench import plan
from loadtests.routing_bench.cache_sizes import SIZES
from loadtests.routing_bench.jobs import ORACLE, REPLICAS, Result
from loadtests.routing_bench.journal import DamagedJournal, Journal, Start
from loadtests.routing_bench.pool import run
from loadtests.routing_bench.scenarios import Scenario, scenarios, traces_folder
from loadtests.routing_bench.sensitivity import changes
from loadtests.routing_bench.tables import scenario_section, sensitivity_section, verdict_section
from loadtests.routing_bench.verdict import judge, measured
from loadtests.sim.contest import all_routers

_QUICK = ("agents", "documents", "few-shot")
_QUICK_SCALE = 0.5
_QUICK_SEEDS = 2
_SENSITIVITY = ("chat", "agents", "documents", "retrieval", "trap-siblings", "trap-hot-prefix")
_RESULTS = ROOT / "loadtests" / "results"


def main(arguments: Sequence[str]) -> int:
    """0; 2 when the arguments make no sense."""
    chosen = _parser().parse_args(arguments)
    try:
        matrix = _matrix(chosen)
        (processes,) = _positive("--jobs", [chosen.jobs])
        out = chosen.out or _RESULTS / f"routing{'-sensitivity' if matrix.changes else ''}"
        start = Start(commit=commit(), machine=machine())
        journal = Journal(out.with_suffix(".jsonl"), start, resume=chosen.resume)
    except (DamagedJournal, ValueError, OSError) as error:
        print(f"routing_bench: {error}", file=sys.stderr)
        return 2
    try:
        run(matrix, journal, processes, say)
    except KeyboardInterrupt:
        say("stopped; --resume goes on from here")
        return 130
    finally:
        journal.close()
    _write(out, matrix, journal)
    return 0


def _write(out: Path, matrix: plan.Matrix, journal: Journal) -> None:
    wanted = plan.jobs(matrix, journal.results)
    found = measured(journal.results, wanted)
    verdicts = [one for point, rows in found.items() if (one := judge(point, rows)) is not None]
    starts = [f"{one.commit} on {one.machine}" for one in journal.starts]
    lines = ["# Routing policies", "", *dict.fromkeys(starts), ""]
    if matrix.changes:
        lines += sensitivity_section(journal.results, wanted)
    else:
        for scenario in matrix.scenarios:
            saturation = plan.saturation_of(scenario, matrix.scale, journal.results)
            lines += scenario_section(scenario, saturation, found)
        lines += verdict_section(verdicts)
    print(*lines, sep="\n")
    out.with_suffix(".md").write_text("\n".join(lines))
    kept: list[Result] = [journal.results[job] for job in wanted if job in journal.results]
    results = {"starts": journal.starts, "verdicts": verdicts, "results": kept}
    encoded = msgspec.json.format(msgspec.json.encode(results), indent=1)
    out.with_suffix(".json").write_bytes(encoded + b"\n")
    say(f"written: {out.with_suffix('.md')}, {out.with_suffix('.json')}")


def _matrix(chosen: argparse.Namespace) -> plan.Matrix:
    sensitivity = chosen.what == "sensitivity"
    usual: Sequence[str] = _QUICK if chosen.quick else _SENSITIVITY if sensitivity else ()
    narrow = chosen.quick or sensitivity
    known = scenarios(traces_folder(chosen.traces))
    policies = [*all_routers(), ORACLE]
    return plan.Matrix(
        scenarios=_scenarios(known, chosen.only or usual),
        policies=_known("--policies", chosen.policies, policies) or policies,
        chosen=bool(chosen.policies),
        loads=_positive("--loads", chosen.loads) or ((plan.FULL_LOAD,) if narrow else plan.LOADS),
        caches=_known("--caches", chosen.caches, list(SIZES))
        or ((plan.USUAL_CACHE,) if narrow else tuple(SIZES)),
        fleets=_positive("--replicas", chosen.replicas) or ((REPLICAS,) if narrow else plan.FLEETS),
        seeds=_positive("--seeds", [chosen.seeds])[0]
        if chosen.seeds is not None
        else _QUICK_SEEDS
        if narrow
        else plan.SEEDS,
        full=chosen.full,
        scale=_QUICK_SCALE if chosen.quick else 1.0,
        changes=changes() if sensitivity else (),
    )


def _scenarios(known: Mapping[str, Scenario], names: Sequence[str]) -> list[Scenario]:
    return [known[name] for name in _known("--only", names, list(known)) or known]


def _known(option: str, names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    for name in names or ():
        if name not in known:
            raise ValueError(f"{option} {name}: there are {', '.join(known)}")
    return list(names or ())


def _positive(option: str, texts: Sequence[object] | None) -> list[int]:
    found = []
    for text in texts or ():
        if not str(text).isdecimal() or int(str(text)) < 1:
            raise ValueError(f"{option} {text}: expected a whole number, at least 1")
        found.append(int(str(text)))
    return found


def _parser() -> argparse.ArgumentParser:
    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",") if name.strip()]

    parser = argparse.ArgumentParser(prog="python -m loadtests.routing_bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["policies", "sensitivity"],
        default="policies",
        help="policies (the default), or how much ours hangs on each of its constants",
    )
    parser.add_argument("--quick", action="store_true", help=f"a few minutes: {', '.join(_QUICK)}")
    parser.add_argument("--full", action="store_true", help="the whole product, not the cross")
    parser.add_argument("--resume", action="store_true", help="keep the results that are there")
    parser.add_argument(
        "--jobs", default=str(os.cpu_count() or 1), metavar="N", help="processes (all cores)"
    )
    for name, what in (
        ("only", "workloads, traces, faults"),
        ("policies", "these everywhere, without a screen"),
        ("loads", "percent of the saturation rate"),
        ("caches", ", ".join(SIZES)),
        ("replicas", "sizes of the fleet"),
    ):
        parser.add_argument(f"--{name}", type=names, metavar="A,B", help=what)
    parser.add_argument("--seeds", metavar="N", help=f"default: {plan.SEEDS}")
    parser.add_argument(
        "--traces", type=Path, metavar="DIR", help="traces in Mooncake's JSONL (WARMROUTE_TRACES)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="NAME", help="of the results, less .md, .json, .jsonl"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
