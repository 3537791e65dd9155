"""The decode attention's kernels at the shapes that matter, to be compiled ahead of time."""

import triton

from kernels.ahead import Case
from kernels.triton_ops import attention_decode
from kernels.triton_ops.launch_rules import DECODE


def cases() -> list[Case]:
    """Both kernels at the shapes of common models, for each kind of GPU."""
    plain = [_decode_case(*shape, hip) for shape in _SHAPES for hip in (False, True)]
    fp8 = [
        _decode_case(*shape, hip, fp8_cache=True) for shape in _FP8_SHAPES for hip in (False, True)
    ]
    return plain + fp8 + [_combine_case(head_dim) for head_dim in (64, 96, 128, 256)]


# (dtype, head_dim, block_size, group, with window and soft cap)
_SHAPES = (
    ("bf16", 64, 16, 4, False),
    ("bf16", 64, 64, 1, False),
    ("bf16", 80, 32, 1, False),
    ("bf16", 96, 16, 5, False),
    ("bf16", 128, 16, 4, False),
    ("bf16", 128, 16, 4, True),
    ("bf16", 128, 32, 8, False),
    ("bf16", 128, 64, 16, False),
    ("fp16", 128, 16, 7, False),
    ("fp16", 64, 32, 3, False),
    ("bf16", 256, 16, 2, True),
    ("bf16", 256, 64, 8, False),
)
_FP8_SHAPES = (
    ("bf16", 64, 16, 4, False),
    ("bf16", 128, 32, 8, True),
    ("fp16", 128, 16, 7, False),
    ("bf16", 256, 16, 2, True),
)


def _decode_case(
    dtype: str,
    head_dim: int,
    block_size: int,
    group: int,
    limited: bool,
    hip: bool,
    *,
    fp8_cache: bool = False,
) -> Case:
    kind, cache_bytes = "gfx942" if hip else "sm_90", 1 if fp8_cache else 2
    launch = dict(DECODE.launch(kind, 2, cache_bytes, head_dim, block_size, group))
    warps, stages = launch.pop("num_warps"), launch.pop("num_stages")
    floats = dict.fromkeys(("out", "query", "kv_cache"), f"*{dtype}")
    if fp8_cache:
        floats["kv_cache"] = "*u8"
    scratch = {"partials": "*fp32", "log_sums": "*fp32", "splits": "*i32"}
    tables = {"block_tables": "*i32", "lengths": "*i32"}
    numbers = dict.fromkeys(
        ("sequences", "wanted", "blocks", "query_stride", "table_stride", "window"), "i32"
    )
    return Case(
        name=f"decode {dtype} {head_dim} block {block_size} group {group}"
        + (" window cap" if limited else "")
        + (" fp8 cache" if fp8_cache else "")
        + (" for gfx942" if hip else ""),
        kernel=attention_decode._decode_kernel,
        types={
            **floats,
            **scratch,
            **tables,
            **numbers,
            **dict.fromkeys(("scale", "soft_cap", "value_scale"), "fp32"),
        },
        constants={
            "KV_HEADS": 8,
            "GROUP": group,
            "HEAD_DIM": head_dim,
            "BLOCK_SIZE": block_size,
            "SPLITS_MAX": 64,
            "HAS_WINDOW": limited,
            "HAS_CAP": limited,
            **launch,
        },
        aligned=(*floats, *scratch, "query_stride"),
        num_warps=warps,
        num_stages=stages,
        targets=("gfx942",) if hip else ("sm_80", "sm_90"),
    )


def _combine_case(head_dim: int) -> Case:
    dims = triton.next_power_of_2(head_dim)
    types = {"out": "*bf16", "partials": "*fp32", "log_sums": "*fp32", "splits": "*i32"}
    return Case(
        name=f"decode combine bf16 {head_dim}",
        kernel=attention_decode._combine_kernel,
        types=types,
        constants={
            "HEADS": 32,
            "HEAD_DIM": head_dim,
            "DIMS": dims,
            "SPLITS_MAX": attention_decode._SPLITS_MAX,
        },
        aligned=tuple(types),
        num_warps=attention_decode._combine_warps(attention_decode._SPLITS_MAX, dims),
        num_stages=1,
    )
