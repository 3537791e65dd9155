"""The Triton kernels against the references: odd shapes, and NaN wherever nothing may be written.

They need a GPU or, as `test_interpreter` arranges, TRITON_INTERPRET=1.
"""

import inspect

import pytest
import torch

from kernels import torch_ops, triton_ops
from tests.kernels.device import DEVICE, INTERPRETED, needs_a_device
from tests.kernels.guards import Guards

# A result may be rounded the other way: by one unit in the last place of 11 and 8 bits. In fp32 a
# GPU approximates exp, rsqrt and division.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# The interpreter cuts bfloat16 off where GPUs round it.
DTYPES = pytest.mark.parametrize(
    "dtype", [one for one in TOLERANCE if one != torch.bfloat16 or not INTERPRETED], ids=str
)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert not actual.isnan().any()
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=1e-6)
    if actual.dtype != torch.float32:
        # Rounded at the same places, nearly all are equal; at other places, a quarter is not.
        assert (actual != expected).sum() <= 2 + actual.numel() // 20


def normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape).to(dtype).to(DEVICE)


@pytest.mark.parametrize("name", triton_ops.__all__)
def test_an_operation_has_the_references_signature(name: str) -> None:
    reference = inspect.signature(getattr(torch_ops, name))
    assert inspect.signature(getattr(triton_ops, name)) == reference


# 16385 and more do not fit one pass.
@needs_a_device
@DTYPES
@pytest.mark.parametrize(
    "shape", [(0, 64), (1, 1), (1, 576), (129, 577), (3, 4096), (2, 16384), (2, 16385)], ids=str
)
def test_rms_norm(guards: Guards, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = guards.copy(normal(*shape, dtype=dtype) * 3)
    weight = guards.copy(normal(shape[1], dtype=dtype))
    before = x.clone()
    close(triton_ops.rms_norm(x, weight, 1e-5), torch_ops.rms_norm(before, weight, 1e-5))
    assert torch.equal(x, before)


@needs_a_device
@DTYPES
@pytest.mark.parametrize(
    "shape", [(0, 64), (1, 1), (1, 576), (129, 577), (3, 4096), (2, 16384), (2, 16385)], ids=str
)
def test_add_rms_norm(guards: Guards, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x, residual = (guards.copy(normal(*shape, dtype=dtype) * 3) for _ in range(2))
    weight = guards.copy(normal(shape[1], dtype=dtype))
    before = x.clone()
    expected, expected_sum = torch_ops.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    normed, total = triton_ops.add_rms_norm(x, residual, weight, 1e-5)
    close(normed, expected)
    assert total is residual
    assert torch.equal(total, expected_sum)
    assert torch.equal(x, before)


@needs_a_device
def test_a_small_row_is_not_normalised_by_its_neighbours(guards: Guards) -> None:
    x = guards.copy(normal(3, 100, dtype=torch.float32))
    x[1] *= 1e-6
    weight = guards.copy(normal(100, dtype=torch.float32))
    close(triton_ops.rms_norm(x, weight, 1e-5), torch_ops.rms_norm(x, weight, 1e-5))


@needs_a_device
@DTYPES
@pytest.mark.parametrize(
    "shape", [(0, 64), (1, 2), (1, 3072), (65, 30), (5, 2050), (2, 8192)], ids=str
)
def test_silu_mul(guards: Guards, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    gate_up = guards.copy(normal(*shape, dtype=dtype) * 4)
    before = gate_up.clone()
    close(triton_ops.silu_mul(gate_up), torch_ops.silu_mul(before))
    assert torch.equal(gate_up, before)


@needs_a_device
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # exp(200) is infinity, and fine
def test_silu_of_extremes_is_what_the_reference_says(guards: Guards) -> None:
    gate = torch.tensor([[-200.0, -90.0, -0.0, 0.0, 90.0, 3e38]], device=DEVICE)
    gate_up = guards.copy(torch.cat([gate, torch.ones_like(gate)], dim=1))
    close(triton_ops.silu_mul(gate_up), torch_ops.silu_mul(gate_up))


# (heads, kv_heads, head_dim)
@needs_a_device
@DTYPES
@pytest.mark.parametrize(
    "heads",
    [(9, 3, 64), (2, 2, 80), (5, 1, 96), (32, 8, 128), (8, 1, 256), (1, 1, 2), (3, 2, 6)],
    ids=str,
)
@pytest.mark.parametrize("tokens", [0, 1, 19])
def test_rope_and_cache_write(
    guards: Guards, dtype: torch.dtype, heads: tuple[int, int, int], tokens: int
) -> None:
    query_heads, kv_heads, head_dim = heads
    block_size = 16
    qkv = normal(tokens, query_heads + 2 * kv_heads, head_dim, dtype=dtype)
    angles = torch.rand(tokens, head_dim // 2, device=DEVICE) * 100
    cosine, sine = guards.copy(angles.cos()), guards.copy(angles.sin())
    slots = torch.randperm(5 * block_size)[:tokens].to(DEVICE)
    cache = guards.empty(2, 5, block_size, kv_heads, head_dim, dtype=dtype, device=DEVICE)
    expected_cache = cache.clone()
    expected = torch_ops.rope_and_cache_write(qkv.clone(), cosine, sine, expected_cache, slots)

    mine = guards.copy(qkv)
    query = triton_ops.rope_and_cache_write(mine, cosine, sine, cache, slots)
    assert query.data_ptr() == mine.data_ptr()
    assert query.stride() == expected.stride()
    close(query, expected)
    # Nobody reads keys and values from here again.
    assert torch.equal(mine[:, query_heads:], qkv[:, query_heads:])
    written = cache.view(2, -1, kv_heads, head_dim)
    close(written[:, slots], expected_cache.view(written.shape)[:, slots])
    untouched = torch.ones(5 * block_size, dtype=torch.bool, device=DEVICE)
    untouched[slots] = False
    assert written[:, untouched].isnan().all()


@needs_a_device
def test_rope_reaches_slots_past_2_to_the_31_elements() -> None:
    block_size, head_dim = 16, 64
    blocks = 2**31 // (block_size * head_dim) + 1
    # 8 GiB of which only what is written is ever touched.
    cache = torch.empty(2, blocks, block_size, 1, head_dim, dtype=torch.float16, device=DEVICE)
    qkv = normal(1, 3, head_dim, dtype=torch.float16)
    angles = torch.rand(1, head_dim // 2, device=DEVICE)
    slots = torch.tensor([blocks * block_size - 1], device=DEVICE)
    small = torch.zeros(2, 1, 1, 1, head_dim, dtype=torch.float16, device=DEVICE)
    first = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    torch_ops.rope_and_cache_write(qkv.clone(), angles.cos(), angles.sin(), small, first)
    triton_ops.rope_and_cache_write(qkv, angles.cos(), angles.sin(), cache, slots)
    close(cache[:, -1, -1], small[:, 0, 0])
