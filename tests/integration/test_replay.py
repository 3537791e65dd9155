"""`warmroute replay` against a router and two replicas of the embedded model: warm prefixes hit."""

import json
from pathlib import Path

import pytest

from cli.main import main
from tests.support.stack import Stack

pytestmark = pytest.mark.processes

LINES = [
    {
        "timestamp": 50 * n,
        "input_length": 1400,
        "output_length": 40,
        "hash_ids": [n % 2, 2 + n % 2, 10 + n],
    }
    for n in range(8)
]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_scaled_trace_hits_what_its_prompts_share(
    stack: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str], endpoint: str
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    command = ["replay", str(trace), "--url", stack.url, "--endpoint", endpoint, "--json"]
    scaled = ["--scale-tokens", "0.1", "--concurrency", "1", "--ignore-eos", "--timeout", "60"]
    assert main([*command, *scaled]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answered"], told["failed"]) == (8, 0)
    assert told["calibration"]["source"] == "/tokenize"
    # Words are one token each in this vocabulary, the first one perhaps two.
    assert told["prompt_off_max"] <= 2 / 140
    assert told["output_tokens"] == 8 * 4
    # Two of three blocks of 51 tokens are shared, whole blocks of the cache are hit.
    assert told["hit_tokens"] >= 6 * 80
    assert sum(told["replicas"].values()) == 8
