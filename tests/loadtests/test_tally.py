"""The load test's summary: what counts as warm, what passes, and a provider that tells nothing."""

from cli.answer import Answer
from loadtests.tally import Tally


def answer(
    *, ttft_s: float, prompt: int | None, cached: int | None, replica: str | None = "r0"
) -> Answer:
    return Answer(
        text="word",
        replica=replica,
        request_id=None,
        matched_tokens=cached,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=10,
        ttft_s=ttft_s,
        total_s=ttft_s,
        tokens_per_s=None,
        finish_reason="stop",
    )


def test_half_a_prompt_cached_is_warm():
    tally = Tally()
    tally.add(answer(ttft_s=0.1, prompt=100, cached=50))
    tally.add(answer(ttft_s=0.3, prompt=100, cached=49, replica="r1"))
    tally.check()
    lines = tally.lines(wall_s=10.0)
    assert lines[0] == "2 answers, 0 failures in 10 s"
    assert "hit rate: 50% of 200 prompt tokens" in lines
    assert "generated: 20 tokens (2.0 a second)" in lines
    assert "replicas: r0 1, r1 1" in lines
    assert "cached tokens predicted exactly: 100% of 2 answers" in lines
    assert [line.split() for line in lines[-2:]] == [
        ["warm", "(at", "least", "50%", "cached)", "1", "100", "100"],
        ["cold", "1", "300", "300"],
    ]
    assert tally.passed


def test_a_failure_fails_the_run_and_is_named():
    tally = Tally()
    tally.add(answer(ttft_s=0.1, prompt=100, cached=0))
    tally.fail("HTTP 429: full")
    tally.fail("HTTP 429: full")
    tally.check()
    assert not tally.passed
    assert tally.lines(1.0)[-1] == "failed 2 times: HTTP 429: full"


def test_a_run_without_any_answer_does_not_pass():
    tally = Tally()
    tally.check()
    assert not tally.passed
    assert tally.lines(0.0)[0] == "0 answers, 0 failures in 0 s"


def test_a_server_that_tells_no_usage_is_neither_warm_nor_cold():
    tally = Tally()
    tally.add(answer(ttft_s=0.2, prompt=None, cached=None, replica=None))
    tally.check()
    lines = tally.lines(1.0)
    assert "hit rate: - of 0 prompt tokens" in lines
    assert "replicas: not told 1" in lines
    assert lines[-1].startswith("cached share not told")
