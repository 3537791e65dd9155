"""A short chaos run: real processes are killed, paused, restarted and drained under load."""

from pathlib import Path

import pytest

from loadtests.chaos.answers import Kind
from loadtests.chaos.faults import Fault
from loadtests.chaos.run import Plan, chaos, tiny_setting

pytestmark = pytest.mark.processes

# It begins with a long pause of one replica and, meanwhile, the kill of another's engine.
SEED = 59


async def test_faults_under_load_alter_no_answer_and_leave_nothing_behind(tmp_path: Path) -> None:
    plan = Plan(
        setting=tiny_setting(tmp_path, replicas=3, workers=1),
        seconds=12.0,
        seed=SEED,
        clients=6,
        cases=16,
    )
    said: list[str] = []
    result = await chaos(plan, said.append)
    told = "\n".join([*said, *result.lines()])
    losses = result.tally.losses()
    # More come as soon as two replicas are healthy again, which is the machine's affair.
    assert result.faults.keys() >= {Fault.PAUSE_LONG, Fault.KILL_ENGINE}, told
    assert result.tally.plain > 20, told
    assert result.tally.streams > 20, told
    assert losses[Kind.FAILED] == 0, told
    assert losses[Kind.ALTERED] == 0, told
    assert losses[Kind.LOST] == 0, told
    assert not result.findings, told
    assert not any(result.left.values()), told
