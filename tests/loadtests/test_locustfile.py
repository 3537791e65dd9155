"""The locust file, run by locust itself for a few seconds: its metrics and its exit status."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_openai_server import FakeServer, running

ROOT = Path(__file__).parents[2]


def locust(url: str, seconds: int = 2, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["-f", "loadtests/locustfile.py", "--headless", "-u", "2", "-r", "2", "--host", url]
    sizes = ["--think-s", "0.05", "--words", "40", "-t", f"{seconds}s"]
    return subprocess.run(
        [sys.executable, "-m", "locust", *arguments, *sizes, *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_good_run_reports_ttft_and_the_hit_rate_and_exits_with_0():
    with running() as server:
        run = locust(server.url)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^TTFT +/v1/chat/completions +[1-9]", run.stdout + run.stderr, re.M)
    assert re.search(r"^hit rate: [1-9]\d*% of [\d,]+ prompt tokens$", run.stdout, re.M)
    assert re.search(r"^warm \(at least 50% cached\) +[1-9]", run.stdout, re.M)
    assert re.search(r"^replicas: .*r[01] [1-9]", run.stdout, re.M)


def test_streams_that_break_are_failures_and_the_exit_status_says_so():
    with running(FakeServer(fail_from=5)) as server:
        run = locust(server.url)
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(r"^4 answers, [1-9]\d* failures", run.stdout, re.M)
    assert "the connection broke: ChunkedEncodingError" in run.stdout


@pytest.mark.parametrize("arguments", [[], ["--model", "m"]], ids=["listing models", "model given"])
def test_a_server_that_is_down_fails_the_run(arguments):
    process = locust("http://127.0.0.1:1", 1, *arguments)
    assert process.returncode == 1
    assert re.search(r"^0 answers, [1-9]\d* failures", process.stdout, re.M), process.stdout
    assert "Traceback" not in process.stdout + process.stderr
