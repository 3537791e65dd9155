"""`make sim`: worlds by seed, one after the other; the first that fails is told with its journal.

python -m tests.sim.run --seeds 5000             seeds 0 to 4999
python -m tests.sim.run --seed 1234 --tail 200   one of them again, and the end of its journal
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.sim.faults import names_of
from tests.sim.world import Outcome, run_seed

_TOLD_EVERY_S = 2.0
_TAIL = 60


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="only this one, and its journal")
    parser.add_argument("--tail", type=int, default=_TAIL, help="lines of a journal to print")
    given = parser.parse_args(arguments)
    if given.seed is not None:
        outcome = run_seed(given.seed)
        _tell(outcome, given.tail)
        return outcome.failure is not None
    return _run(range(given.first, given.first + given.seeds), given.tail)


def _run(seeds: Sequence[int], tail: int) -> int:
    started_s = told_s = time.monotonic()
    requests, faults = Counter[str](), Counter[str]()
    virtual_s = 0.0
    for done, seed in enumerate(seeds, 1):
        outcome = run_seed(seed)
        virtual_s += outcome.virtual_s
        faults.update(names_of(outcome.faults))
        for ask in outcome.asks:
            requests.update(ask.outcomes)
        now = time.monotonic()
        if outcome.failure is not None:
            print(file=sys.stderr)
            _tell(outcome, tail)
            return 1
        if now - told_s > _TOLD_EVERY_S or done == len(seeds):
            told_s = now
            print(
                f"\r{done} of {len(seeds)} seeds, {done / (now - started_s):.1f}/s,"
                f" {virtual_s / (now - started_s):.0f} times as fast as time ",
                end="", file=sys.stderr, flush=True,
            )  # fmt: skip
    print(file=sys.stderr)
    print(f"{len(seeds)} seeds, {virtual_s / 3600:.1f} hours of virtual time, no failure")
    print("worlds with:", ", ".join(f"{name} {count}" for name, count in faults.most_common()))
    print("requests:", ", ".join(f"{name} {count}" for name, count in requests.most_common()))
    return 0


def _tell(outcome: Outcome, tail: int) -> None:
    for line in outcome.tail[-tail:]:
        print(line)
    print(f"faults: {', '.join(names_of(outcome.faults)) or 'none'}")
    failure = outcome.failure
    if failure is None:
        print(f"seed {outcome.seed} is fine; digest {outcome.digest}")
        return
    print(f"seed {outcome.seed} fails: {failure.check}: {failure.message}")
    print(f"again: python -m tests.sim.run --seed {outcome.seed} --tail 400")


if __name__ == "__main__":
    sys.exit(main())
