"""Pictures of runs: what they show is what happened, and every policy is on the page."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from cli.main import main
from loadtests.sim.plots.series import edges_of, series_of
from loadtests.sim.world import Run, Served


def test_load_and_hits_over_time_are_those_of_the_requests() -> None:
    served = [
        Served(0, 0.0, 100, 5, 0, 1.0, 4.0, cached_tokens=0),
        Served(1, 2.0, 300, 5, 1, 0.5, 1.0, cached_tokens=150),
        Served(2, 8.0, 100, 5, 1, None, 1.0, cached_tokens=0, failed=True),
    ]
    run = Run(served=served, busy_s=[1.0, 2.0], ended_s=9.0)
    edges = edges_of([run], slices=9)
    assert edges[-1] == 9.0
    found = series_of("any", run, edges)
    assert found.in_flight.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0, 1]]
    assert found.hit_share[[0, 2, 8]].tolist() == [0.0, 0.5, 0.0]
    assert np.isnan(found.hit_share[1])
    assert np.isnan(found.replica_hit_share[0, 2])
    assert found.waits_s.tolist() == [0.5, 1.0]
    assert found.mean_s == 0.75


def test_what_drains_long_after_the_last_arrival_is_not_shown() -> None:
    runs = [Run(served=[Served(0, 8.0, 1, 1, 0)], busy_s=[0.0], ended_s=end) for end in (9.0, 900)]
    assert edges_of(runs)[-1] == 10.0
    assert edges_of([Run()])[-1] > 0


def test_the_page_needs_nothing_else_and_has_every_policy(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="of the extra loadtests")
    names = ["prefix_aware", "round_robin", "dynamo_cost"]
    command = ["simulate", "few-shot", "--requests", "20", "--rate", "40", "--replicas", "3"]
    command += ["--policy", ",".join(names), "--plots", str(tmp_path / "new" / "plots")]
    assert main(command) == 0
    folder = tmp_path / "new" / "plots"
    page = (folder / "report.html").read_text()
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 5
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert all(name in picture for name in names)
    assert len(list(folder.glob("*.png"))) == 5
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    linked = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("#", "data:")) for link in linked)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for heading in ("time to first token, s", "requests in flight", "prompt tokens cached, %"):
        assert heading in page


def test_without_matplotlib_it_is_told_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in ("page", "figures"):
        monkeypatch.delitem(sys.modules, f"loadtests.sim.plots.{name}", raising=False)
    assert main(["simulate", "few-shot", "--requests", "5", "--plots", str(tmp_path)]) == 2
    assert "pip install 'warmroute[loadtests]'" in capsys.readouterr().err
