"""Grammar masks in Triton against the reference, NaN about the logits.

It needs a GPU or, as `test_interpreter` arranges, TRITON_INTERPRET=1.
"""

import pytest
import torch

from kernels import torch_ops, triton_ops
from tests.kernels.device import DEVICE, needs_a_device
from tests.kernels.guards import Guards

pytestmark = needs_a_device


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (3, 33), (2, 1024), (2, 5001), (0, 40)])
def test_it_equals_the_reference(dtype: torch.dtype, rows: int, vocabulary: int) -> None:
    torch.manual_seed(0)
    guards = Guards()
    logits = guards.copy(torch.randn(rows, vocabulary).to(dtype).to(DEVICE))
    masks = torch.randint(-(2**31), 2**31, (rows, -(-vocabulary // 32)), device=DEVICE)
    masks = masks.to(torch.int32)
    expected = torch_ops.logits_mask(logits.clone(), masks)
    assert triton_ops.logits_mask(logits, masks) is logits
    assert torch.equal(logits, expected)
    guards.check()
