"""The chaos test's last word: what passes, what does not, and what the table says."""

from collections import Counter
from typing import Any

import pytest

from loadtests.chaos.answers import Kind, Loss
from loadtests.chaos.faults import Fault
from loadtests.chaos.leftovers import tcp_connections, total
from loadtests.chaos.load import Report, Tally
from loadtests.chaos.report import Result

METRICS = """\
# TYPE warmroute_attempts_total counter
warmroute_attempts_total{model="m",replica="r0",outcome="answered"} 90.0
warmroute_attempts_total{model="m",replica="r0",outcome="broken"} 3.0
warmroute_attempts_total{model="m",replica="r1",outcome="broken_stream"} 2.0
warmroute_attempts_total{model="m",replica="r1",outcome="refused"} 1.0
warmroute_resumes_total{model="m",outcome="resumed"} 5.0
warmroute_resumes_total{model="m",outcome="failed"} 1.0
"""


def result(*kinds: Kind, **changes: Any) -> Result:
    tally = Tally()
    for _ in range(10):
        tally.add(stream=True)
    for kind in kinds:
        loss = Loss(kind=kind, what="it broke")
        tally.reports.append(
            Report(loss=loss, case="chat 1", stream=True, replica="r0", request_id="x", at_s=3.0)
        )
    given = {
        "heading": "chaos",
        "tally": tally,
        "faults": Counter({Fault.DRAIN: 2}),
        "failed_starts": 0,
        "findings": [],
        "metrics": METRICS,
        "left": {"leases left": 0.0},
        "left_out": 0,
        "started_s": 1.0,
    }
    return Result(**{**given, **changes})


@pytest.mark.parametrize(
    ("over", "passed"),
    [
        (result(), True),
        (result(Kind.CUT), True),
        (result(Kind.LOST), False),
        (result(Kind.ALTERED), False),
        (result(Kind.FAILED), False),
        (result(left={"leases left": 1.0}), False),
        (result(findings=["r0 ended"]), False),
        (result(tally=Tally()), False),
    ],
    ids=["whole", "cut by worker", "lost", "altered", "failed", "lease", "finding", "no request"],
)
def test_it_passes_only_if_nothing_was_lost_or_left(over: Result, passed: bool) -> None:
    assert over.passed is passed
    assert over.lines()[-1] == ("passed" if passed else "FAILED")


def test_the_table_counts_faults_losses_retries_and_resumes() -> None:
    rows = {
        line.rsplit(maxsplit=1)[0].strip(): line.rsplit(maxsplit=1)[1]
        for line in result(Kind.LOST, Kind.LOST).lines()[:-3]
    }
    assert rows["requests: streams"] == "10"
    assert rows["fault: drain"] == "2"
    assert rows["loss: lost stream"] == "2"
    assert rows["retries"] == "4"
    assert rows["resumes: resumed"] == "5"
    assert rows["resumes: failed"] == "1"


def test_a_loss_is_told_with_its_request() -> None:
    lines = result(Kind.LOST).lines()
    assert "   2.0 s  lost stream: chat 1, stream, from r0, request x: it broke" in lines


def test_without_the_metric_resumes_are_unknown() -> None:
    assert any(line.split() == ["resumes", "-"] for line in result(metrics="").lines())


def test_a_metrics_values_are_added_up_by_their_labels() -> None:
    assert total(METRICS, "warmroute_attempts_total") == 96
    assert total(METRICS, "warmroute_attempts_total", 'replica="r1"') == 3
    assert total("queued 2.0\nqueued_other 3.0\n", "queued") == 2
    assert total("", "queued") == 0


def test_the_kernels_table_of_connections_is_read() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n"
        "   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000\n"
    )
    assert tcp_connections(table) == [(8080, 0, "0A"), (8080, 54321, "01")]
