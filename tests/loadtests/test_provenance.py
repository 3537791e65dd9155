"""Results say where they come from."""

import json
from pathlib import Path

from loadtests import provenance


def test_results_begin_with_the_day_the_commit_and_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    provenance.write_results(path, {"rows": [1, 2], "absent": {}})
    found = json.loads(path.read_text())
    assert list(found) == ["date", "commit", "machine", "rows", "absent"]
    assert found["commit"] == provenance.commit()
    assert found["machine"] == provenance.machine()
    assert path.read_bytes().endswith(b"}\n")
