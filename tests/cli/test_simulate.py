"""`warmroute simulate`: a table or rows, the same each time; what makes no sense is told."""

import json
from pathlib import Path

import pytest

from cli.main import main

LINES = [
    {"timestamp": 100 * n, "input_length": 1500, "output_length": 20, "hash_ids": [0, n % 5, 9 + n]}
    for n in range(40)
]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return str(path)


def test_rows_of_a_trace_are_the_same_each_time(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", trace, "--replicas", "2", "--speedup", "2", "--cache-blocks", "500"]
    seen = []
    for _ in range(2):
        assert main([*command, "--policy", "prefix_aware,random", "--seed", "3", "--json"]) == 0
        seen.append(json.loads(capsys.readouterr().out))
    assert seen[0] == seen[1]
    first, second = seen[0]["rows"]
    assert (first["policy"], second["policy"]) == ("prefix_aware", "random")
    wanted = {"policy", "ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "hit_tokens", "goodput"}
    assert wanted <= first.keys()
    assert first["hit_tokens"] >= second["hit_tokens"] > 0
    assert first["requests"] == 40


def test_a_workload_is_a_table_of_all_policies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "chat", "--requests", "30", "--set", "turns=2"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "TTFT mean, s" in head
    assert {row.split("|")[1].strip() for row in rows} >= {"prefix_aware", "round_robin", "random"}


def test_replicas_evict_as_they_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["simulate", "system-prompts", "--requests", "300", "--policy", "random"]
    hits = {}
    for eviction in ("lru", "reuse"):
        fleet = ["--replicas", "1", "--cache-blocks", "300", "--eviction", eviction]
        assert main([*command, *fleet, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        hits[eviction] = row["hit_tokens"]
    assert hits["reuse"] > hits["lru"]


def test_replicas_admit_in_the_order_they_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["simulate", "trap-lengths", "--requests", "200", "--rate", "2", "--policy", "random"]
    means = {}
    for order in ("fcfs", "response_ratio"):
        assert main([*command, "--replicas", "1", "--queue-order", order, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        means[order] = row["ttft_mean_s"]
    assert means["response_ratio"] < 0.8 * means["fcfs"]


def test_where_tokens_in_flight_are_limited_requests_wait_or_are_turned_away(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["simulate", "agents", "--requests", "300", "--rate", "20", "--replicas", "2"]
    limits = ["--policy", "prefix_aware,least_tokens", "--replica-max-tokens", "400000"]
    rows = {}
    for order in ("response_ratio", "fcfs"):
        for timeout in ("10", "1000"):
            queue = ["--router-queue", order, "--queue-timeout", timeout]
            assert main([*command, *limits, *queue, "--json"]) == 0
            ours, theirs = json.loads(capsys.readouterr().out)["rows"]
            rows[order, timeout] = ours
            assert theirs["failed"] == 0, "only prefix_aware has these limits"
    assert all(rows[order, "1000"]["failed"] == 0 for order in ("response_ratio", "fcfs"))
    assert rows["fcfs", "10"]["failed"] > rows["response_ratio", "10"]["failed"]
    warm, cold = rows["response_ratio", "1000"], rows["fcfs", "1000"]
    assert warm["hit_tokens"] > cold["hit_tokens"]
    assert warm["ttft_mean_s"] < cold["ttft_mean_s"]


def test_a_limit_over_all_replicas_holds_back(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["simulate", "chat", "--requests", "100", "--policy", "prefix_aware", "--json"]
    means = []
    for limit in ([], ["--max-tokens", "10000"]):
        assert main([*command, *limit, "--queue-timeout", "1000"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        assert row["requests"] == 100
        assert row["failed"] == 0
        means.append(row["ttft_mean_s"])
    assert means[1] > 2 * means[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file, nor a workload"),
        (["chat", "--policy", "best"], "--policy best: there are all, prefix_aware"),
        (["chat", "--preset", "tpu"], "--preset tpu: there are h100-8b"),
        (["chat", "--replicas", "0"], "--replicas: expected at least 1, got 0"),
        (["chat", "--eviction", "mru"], "--eviction mru: there are lru, reuse"),
        (["chat", "--queue-order", "sjf"], "--queue-order sjf: there are response_ratio, fcfs"),
        (["chat", "--set", "colour=red"], "chat: no parameter 'colour'"),
        (["chat", "--max-tokens", "0"], "--max-tokens: expected at least 1, got 0"),
        (["chat", "--replica-max-tokens", "-1"], "--replica-max-tokens: expected at least 1"),
        (["chat", "--router-queue", "lifo"], "--router-queue lifo: there are response_ratio, fcfs"),
        (["chat", "--queue-timeout", "0"], "--queue-timeout: expected more than 0, got 0"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) and len(value) > 1 else "",
)
def test_what_makes_no_sense_is_told_in_a_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_damaged_trace_names_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n{}\n")
    assert main(["simulate", str(path)]) == 2
    assert "bad.jsonl:2: " in capsys.readouterr().err
