"""The prefill attention's kernel at the shapes that matter, to be compiled ahead of time."""

from kernels.ahead import Case
from kernels.triton_ops import attention_prefill
from kernels.triton_ops.launch_rules import PREFILL


def cases() -> list[Case]:
    """It at the shapes of common models, for each kind of GPU."""
    kinds = ("sm_80", "sm_90", "gfx942")
    plain = [_case(*shape, kind) for shape in _SHAPES for kind in kinds]
    return plain + [_case(*shape, kind, fp8_cache=True) for shape in _FP8_SHAPES for kind in kinds]


# (dtype, head_dim, block_size, group, with window and soft cap, few new tokens a sequence)
_SHAPES = (
    ("bf16", 64, 16, 4, False, False),
    ("bf16", 64, 64, 3, True, False),
    ("bf16", 64, 16, 3, False, True),
    ("bf16", 80, 32, 1, False, False),
    ("bf16", 96, 16, 5, False, False),
    ("bf16", 128, 16, 4, False, False),
    ("bf16", 128, 32, 8, True, False),
    ("bf16", 128, 64, 7, False, False),
    ("bf16", 128, 16, 5, True, False),
    ("bf16", 128, 16, 8, False, True),
    ("fp16", 128, 32, 1, False, False),
    ("fp16", 64, 16, 16, False, False),
    ("bf16", 256, 16, 2, True, False),
    ("bf16", 256, 64, 8, False, False),
    ("bf16", 256, 64, 2, True, True),
)
_FP8_SHAPES = (
    ("bf16", 64, 16, 4, False, False),
    ("bf16", 128, 32, 8, True, False),
    ("bf16", 128, 64, 7, False, False),
    ("bf16", 128, 16, 8, False, True),
    ("bf16", 256, 16, 2, True, False),
)


def _case(
    dtype: str,
    head_dim: int,
    block_size: int,
    group: int,
    limited: bool,
    few: bool,
    kind: str,
    *,
    fp8_cache: bool = False,
) -> Case:
    cache_bytes = 1 if fp8_cache else 2
    launch = dict(PREFILL.launch(kind, 2, cache_bytes, head_dim, block_size, group, few))
    warps, stages = launch.pop("num_warps"), launch.pop("num_stages")
    floats = dict.fromkeys(("out", "query", "kv_cache"), f"*{dtype}")
    if fp8_cache:
        floats["kv_cache"] = "*u8"
    scratch = dict.fromkeys(("partials", "log_sums"), "*fp32")
    tables = dict.fromkeys(("block_tables", "offsets", "lengths"), "*i32")
    numbers = dict.fromkeys(
        ("sequences", "blocks", "query_stride", "table_stride", "window"), "i32"
    )
    return Case(
        name=f"prefill {dtype} {head_dim} block {block_size} group {group}"
        + (" window cap" if limited else "")
        + (" few" if few else "")
        + (" fp8 cache" if fp8_cache else "")
        + f" for {kind}",
        kernel=attention_prefill._prefill_kernel,
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
            "HAS_WINDOW": limited,
            "HAS_CAP": limited,
            **launch,
        },
        aligned=(*floats, *scratch, "query_stride"),
        num_warps=warps,
        num_stages=stages,
        targets=(kind,),
    )
