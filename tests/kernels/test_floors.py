"""The least that operations must move and compute, on numbers that can be reckoned by hand."""

import pytest

from kernels import floors
from kernels.floors import H100, Gpu, Work

GPU = Gpu("tiny", 100.0, 10.0)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (floors.rms_norm(3, 10), Work(7 * 10 * 2, 120)),
        (floors.add_rms_norm(3, 10), Work(13 * 10 * 2, 150)),
        (floors.silu_mul(2, 8), Work(96, 80)),
        (floors.rope_and_cache_write(1, 4, 2, 8), Work(2 * 8 * 8 * 2 + 32 + 8, 3 * 6 * 8)),
        # queries in and out of 2 bytes, keys and values in of 2 and out of 1
        (floors.rope_and_cache_write(1, 4, 2, 8, 2, 1), Work((16 + 8 + 4) * 8 + 40, 144)),
        # 30 tokens of 2 KV heads of 8, keys and values; 2 queries of 4 heads in and out
        (floors.paged_attention_decode([10, 20], 4, 2, 8), Work(2176, 4 * 30 * 4 * 8)),
        (floors.paged_attention_decode([10, 20], 4, 2, 8, 2, 1), Work(960 + 256, 3840)),
        # 1 + 2 + 3 tokens are seen
        (floors.paged_attention_prefill([3], [3], 1, 1, 8), Work(192, 4 * 6 * 8)),
        # two new ones after three: 4 + 5
        (floors.paged_attention_prefill([2], [5], 1, 1, 8), Work((80 + 32) * 2, 4 * 9 * 8)),
        (floors.paged_attention_prefill([2], [5], 1, 1, 8, 2, 1), Work(80 + 64, 288)),
        (floors.matmul(2, 3, 5), Work((6 + 15 + 10) * 2, 60)),
        (floors.quantised_matmul(2, 8, 5, 4, 10), Work(2 * 13 * 2 + 20 + 10, 160)),
        (floors.moe(1, 2, 8, 4, 6), Work((3 * 2 * 24 + 8) * 2, 6 * 2 * 24)),
        (floors.moe(100, 2, 8, 4, 6), Work((3 * 8 * 24 + 800) * 2, 6 * 200 * 24)),
        (floors.sample(2, 100), Work(400, 200)),
        (floors.logits_mask(2, 80, 150), Work(20 + 300, 160)),
    ],
)
def test_work_is_as_reckoned_by_hand(work: Work, expected: Work) -> None:
    assert work == expected


def test_a_prefill_of_everything_is_a_prefill_in_two_parts() -> None:
    whole = floors.paged_attention_prefill([300], [300], 8, 2, 64)
    parts = [
        floors.paged_attention_prefill([200], [200], 8, 2, 64),
        floors.paged_attention_prefill([100], [300], 8, 2, 64),
    ]
    assert sum(one.operations for one in parts) == whole.operations


def test_the_floor_is_the_slower_of_bandwidth_and_arithmetic() -> None:
    assert GPU.floor_s(Work(100, 1)) == 1.0
    assert GPU.floor_s(Work(1, 100)) == 10.0
    assert GPU.floor_s(Work(50, 5) + Work(50, 5)) == 1.0


def test_a_decode_step_of_eight_billion_parameters_takes_five_milliseconds_on_an_h100() -> None:
    assert H100.floor_s(Work(16e9, 0)) == pytest.approx(4.8e-3, rel=0.01)
