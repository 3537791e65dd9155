"""`warmroute replay` against a server that fails as it is told: all is counted, nothing is lost."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from tests.support.fake_openai_server import running
from tests.support.replay_target import AROUND_TOKENS, ReplayTarget

# What an answer takes here is no matter.
PATIENT = ("--slo-ttft", "1000")
ROOT = Path(__file__).parents[2]
LINES: list[dict[str, Any]] = [
    {"timestamp": 40 * n, "input_length": 1024, "output_length": 6, "hash_ids": [n % 2, 10 + n]}
    for n in range(12)
]


@pytest.fixture
def target() -> Iterator[ReplayTarget]:
    server = ReplayTarget()
    with running(server):
        yield server


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return str(path)


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs it with --json; (exit status, the object, stderr)."""
    for name in ("WARMROUTE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def _replay(*arguments: str) -> tuple[int, dict[str, Any], str]:
        status = main(["replay", *arguments, "--json"])
        captured = capsys.readouterr()
        return status, json.loads(captured.out), captured.err

    return _replay


def test_all_is_answered_with_the_tokens_of_the_trace(target, trace, replay, tmp_path) -> None:
    out = tmp_path / "out.jsonl"
    # One at a time, so that they come to the replicas in their order.
    paced = ["--speedup", "4", "--concurrency", "1", *PATIENT]
    status, told, err = replay(trace, "--url", target.url, *paced, "--out", str(out))
    assert (status, err) == (0, "")
    assert (told["requests"], told["answered"], told["failed"], told["dropped"]) == (12, 12, 0, 0)
    assert (told["prompt_tokens"], told["prompt_off_max"]) == (12 * 1024, 0.0)
    assert (told["output_tokens"], told["short_answers"]) == (12 * 6, 0)
    assert told["calibration"] == {
        "around_tokens": AROUND_TOKENS,
        "tokens_per_word": 1.0,
        "source": "/tokenize",
    }
    # Each of the two first blocks is computed once by each replica (which take turns, as they do).
    assert told["hit_tokens"] == 10 * (512 - AROUND_TOKENS)
    assert told["replicas"] == {"r0": 6, "r1": 6}
    assert told["goodput"] == 1.0
    requests = sorted(map(json.loads, out.read_text().splitlines()), key=lambda r: r["number"])
    # The schedule is the trace's, four times as fast, whenever the requests then went.
    assert [one["scheduled_s"] for one in requests] == pytest.approx([0.01 * n for n in range(12)])
    assert all(one["scheduled_s"] <= one["sent_s"] <= one["ended_s"] for one in requests)
    assert {one["status"] for one in requests} == {200}


def test_blocks_of_the_trace_are_blocks_of_the_text(target, trace, replay) -> None:
    replay(trace, "--url", target.url, "--endpoint", "completions", "--speedup", "100")
    blocks = {}
    for prompt in target.prompts:
        words = prompt.split(" ")
        assert len(words) == 1024
        blocks[tuple(words[512:])] = tuple(words[:512])
    assert len(blocks) == 12
    assert len(set(blocks.values())) == 2


@pytest.mark.parametrize("speedup", [[], ["--speedup", "1000"]], ids=["closed", "open"])
def test_a_cap_is_never_exceeded(target, trace, replay, speedup, tmp_path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["--url", target.url, "--concurrency", "3", *speedup, "--out", str(out)]
    status, told, _ = replay(trace, *arguments)
    assert (status, told["answered"]) == (0, 12)
    assert target.in_flight_max == told["in_flight_max"] == 3
    requests = [json.loads(line) for line in out.read_text().splitlines()]
    waited = sum(one["ready_s"] > one["scheduled_s"] for one in requests)
    # All are due within half a millisecond, and an answer takes six.
    assert waited == (9 if speedup else 0)


def test_what_fails_is_counted_by_kind_and_not_good(target, trace, replay, tmp_path) -> None:
    target.faults = {1: "refuse", 3: "break", 5: "stall", 7: "error", 8: "refuse"}
    out = tmp_path / "out.jsonl"
    arguments = ["--url", target.url, "--concurrency", "1", "--timeout", "2", *PATIENT]
    status, told, _ = replay(trace, *arguments, "--out", str(out))
    assert status == 0
    assert told["errors"] == {"http 429": 2, "broken": 2, "timeout": 1}
    assert (told["answered"], told["failed"], told["goodput"]) == (7, 5, 7 / 12)
    requests = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(one["number"] for one in requests) == list(range(12))
    failed = {one["number"]: one for one in requests if one["error"]}
    assert failed[1]["status"] == 429
    assert failed[1]["message"] == "HTTP 429: the queue is full"
    assert failed[3]["status"] == 200
    assert failed[3]["first_token_s"] is not None
    assert "the replica died" in failed[7]["message"]
    # An answer that is not whole has no end-to-end time.
    assert failed[5]["e2e_s"] is None


def test_when_all_fail_the_exit_status_says_so(target, trace, replay) -> None:
    target.faults = {"*": "refuse"}
    status, told, _ = replay(trace, "--url", target.url, "--speedup", "100")
    assert (status, told["failed"], told["ttft_mean_s"]) == (1, 12, None)


def test_without_tokenize_the_usage_of_short_prompts_is_taken(trace, replay) -> None:
    with running(ReplayTarget(tokenizes=False)) as target:
        _, told, _ = replay(trace, "--url", target.url, "--speedup", "100")
        assert told["calibration"]["around_tokens"] == AROUND_TOKENS
        assert [body["max_tokens"] for body in target.probes] == [1, 1]
        assert told["prompt_off_max"] == 0.0


def test_a_server_that_tells_nothing_is_timed_all_the_same(trace, replay) -> None:
    with running(ReplayTarget(tokenizes=False, tells_usage=False)) as target:
        status, told, _ = replay(trace, "--url", target.url, "--speedup", "100")
    assert (status, told["answered"], told["output_tokens"]) == (0, 12, 12 * 6)
    assert (told["hit_tokens"], told["prompt_off_mean"]) == (None, None)


def test_short_answers_and_prompts_beyond_the_context_are_told(
    target, trace, capsys: pytest.CaptureFixture[str]
) -> None:
    target.short_by = 2
    Path(trace).write_text(json.dumps({**LINES[0], "input_length": 5000, "hash_ids": [0] * 10}))
    assert main(["replay", trace, "--url", target.url]) == 0
    captured = capsys.readouterr()
    assert "1 of 1 answers ended before" in captured.out
    assert "the longest request has 5,006 tokens, the server's context holds 4,096" in captured.err


def test_prompts_shorter_than_what_a_chat_adds_are_told(
    target, trace, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", target.url, "--speedup", "100", "--scale-tokens", "0.005"]
    assert main(["replay", trace, *arguments]) == 0
    assert "12 prompts are shorter than what a chat adds" in capsys.readouterr().out
    assert main(["replay", trace, *arguments, "--endpoint", "completions"]) == 0
    assert "shorter" not in capsys.readouterr().out


def test_a_workload_is_replayed_by_its_name_with_key_and_model(target, replay) -> None:
    status, told, _ = replay(
        *("chat", "--rate", "500", "--requests", "5", "--scale-tokens", "0.05"),
        *("--url", target.url, "--api-key", "secret", "--model", "other", "--ignore-eos"),
        *("--max-tokens", "3"),
    )
    assert (status, told["requests"], told["model"]) == (0, 5, "other")
    assert target.keys == {"Bearer secret"}
    assert {(body["model"], body["ignore_eos"]) for body in target.requests} == {("other", True)}
    assert max(body["max_tokens"] for body in target.requests) <= 3


def test_the_table_has_what_a_person_looks_for(
    target, trace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", trace, "--url", target.url, "--speedup", "100"]) == 0
    told = capsys.readouterr().out
    for word in ("TTFT", "TPOT", "ITL", "E2E", "goodput: ", "r0 6, r1 6", "generator: "):
        assert word in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file, nor a workload"),
        (["chat", "--concurrency", "0"], "--concurrency: expected at least 1, got 0"),
        (["chat", "--scale-tokens", "1.5"], "--scale-tokens: expected above 0 and at most 1"),
        (["chat", "--timeout", "nan"], "--timeout: expected a number above 0, got nan"),
        (["chat", "--slo-ttft", "-1"], "--slo-ttft: expected a number above 0"),
        (["chat", "--speedup", "0"], "--speedup: expected a number above 0"),
        (["chat", "--requests", "0"], "--requests: expected at least 1, got 0"),
        (["chat", "--url", "http://host:port"], "--url: http://host:port: "),
        (["chat", "--set", "colour=red"], "chat: no parameter 'colour'"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_damaged_trace_names_its_line_and_field_and_sends_nothing(
    target, trace, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(trace, "a") as file:
        file.write('{"timestamp": 1, "input_length": 1, "output_length": "x", "hash_ids": [1]}\n')
    assert main(["replay", trace, "--url", target.url]) == 2
    error = capsys.readouterr().err
    assert "trace.jsonl:13: " in error
    assert "$.output_length" in error
    assert target.requests == []


def test_nobody_there_is_an_error_in_a_line(trace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", trace, "--url", "http://127.0.0.1:9"]) == 1
    assert "nobody answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_ctrl_c_ends_it_with_a_report_of_what_was_done(target, trace, tmp_path) -> None:
    target.faults = {2: "forever"}
    out = tmp_path / "out.jsonl"
    arguments = [
        trace,
        "--url",
        target.url,
        "--concurrency",
        "1",
        "--json",
        "--out",
        str(out),
        *PATIENT,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "replay", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert target.streaming.wait(timeout=30)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    told = json.loads(printed)
    assert process.returncode == 130
    assert told["interrupted"] is True
    assert (told["answered"], told["failed"], told["dropped"]) == (2, 1, 9)
    assert told["errors"] == {"dropped": 9, "interrupted": 1}
    assert told["goodput"] == 2 / 12
    assert len(out.read_text().splitlines()) == 12
