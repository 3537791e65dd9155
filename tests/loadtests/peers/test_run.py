"""The comparison itself: real replicas, a real router, the same load; who takes part, and how."""

import json
from pathlib import Path

import pytest

from loadtests.overhead.contestants import Setting
from loadtests.peers.contestants import CONTESTANTS
from loadtests.peers.run import main


@pytest.mark.processes
def test_a_comparison_of_our_policies_runs_and_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    arguments = ["chat", "--only", "warmroute", "--requests", "12", "--rate", "50"]
    small = ["--replicas", "2", "--slowness", "0.1", "--json", str(file)]
    assert main([*arguments, *small], isolated=False) == 0
    told = json.loads(file.read_text())
    assert [row["router"] for row in told["rows"]] == ["warmroute", "warmroute round_robin"]
    ours, in_turn = told["rows"]
    assert ours["errors"] == in_turn["errors"] == {}
    assert ours["prompt_tokens"] == in_turn["prompt_tokens"] > 0  # the same words for each
    assert 0 < ours["cached_tokens"] < ours["prompt_tokens"]
    assert ours["cpu_s"] > 0
    assert ours["first_mean_s"] <= ours["whole_mean_s"]
    assert "warmroute round_robin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chat", "--only", "haproxy"], "no contestant is called haproxy"),
        (["/nowhere.jsonl"], "/nowhere.jsonl"),
        (["chat", "--rate", "0", "--only", "warmroute"], "requests_per_s"),
        (["chat", "--preset", "gpu"], "invalid choice: 'gpu'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_arguments_without_sense_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments, isolated=False)
    assert message in capsys.readouterr().err


def test_every_router_is_told_of_every_replica(tmp_path: Path) -> None:
    setting = Setting(
        directory=tmp_path, port=1000, other_port=1001, replicas=[[1, 2, 3], [4, 5, 6]]
    )
    assert len({one.name for one in CONTESTANTS}) == len(CONTESTANTS) >= 9
    for one in CONTESTANTS:
        command = " ".join(one.command(setting))
        if one.name.startswith("warmroute"):
            command = (tmp_path / "router.yaml").read_text()
        assert "http://127.0.0.1:1" in command
        assert "http://127.0.0.1:4" in command
        if "kv_aware" in one.name:
            assert "--kv-event-source http://127.0.0.1:4=tcp://127.0.0.1:5" in command
            assert "--kv-event-replay-source http://127.0.0.1:1=tcp://127.0.0.1:3" in command
