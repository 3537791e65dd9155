"""Results outlive the process: what was cut off goes on, and rates are not searched for twice."""

from pathlib import Path

import pytest

from loadtests.routing_bench.jobs import Saturate
from loadtests.routing_bench.journal import DamagedJournal, Journal, Start
from tests.loadtests.routing_bench.rows import measure, result

START = Start(commit="abc", machine="a machine")


def filled(path: Path) -> None:
    journal = Journal(path, START, resume=False)
    for job in (Saturate(scenario="chat"), measure("random"), measure(change="x × 2")):
        journal.add(result(job, 2.5))
    journal.close()


def test_what_was_done_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "routing.jsonl"
    filled(path)
    again = Journal(path, Start(commit="def", machine="another"), resume=True)
    again.close()
    assert list(again.results) == [
        Saturate(scenario="chat"),
        measure("random"),
        measure(change="x × 2"),
    ]
    assert again.results[measure("random")] == result(measure("random"), 2.5)
    assert [one.commit for one in again.starts] == ["abc", "def"]


def test_without_resuming_only_rates_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "routing.jsonl"
    filled(path)
    again = Journal(path, START, resume=False)
    again.close()
    assert list(again.results) == [Saturate(scenario="chat")]
    assert again.starts == [START]


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "routing.jsonl"
    filled(path)
    path.write_bytes(path.read_bytes()[:-20])
    again = Journal(path, START, resume=True)
    again.add(result(measure("session")))
    again.close()
    third = Journal(path, START, resume=True)
    third.close()
    assert list(third.results) == [
        Saturate(scenario="chat"),
        measure("random"),
        measure("session"),
    ]


def test_what_is_no_journal_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "routing.jsonl"
    path.write_text('{"type": "start", "commit": "a", "machine": "b"}\nhello\n')
    with pytest.raises(DamagedJournal, match=r"routing\.jsonl:2: "):
        Journal(path, START, resume=False)
    assert "hello" in path.read_text()
