"""What the tests of Triton's kernels share."""

from collections.abc import Iterator

import pytest
import torch

from tests.kernels.guards import Guards


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    """What the launchers allocate is guarded, too."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = Guards()
    monkeypatch.setattr(torch, "empty", made.empty)
    monkeypatch.setattr(torch, "empty_like", made.empty_like)
    yield made
    made.check()
