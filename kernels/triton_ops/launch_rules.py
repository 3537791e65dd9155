"""The launches of kernels that have a choice: tile, warps and stages of attention and of products.

What was tried by hand is told with each default. Alternatives neither spill at the shapes of
common models nor take more shared memory than their GPU has; how fast they are only a GPU can say
(`kernels.tuning`).
"""

from functools import cache
from itertools import product

import torch
import triton

from kernels.launches import Launch, Rule

ROWS_MIN = 16  # of a matrix for tl.dot
# Rows of a tile for few tokens (decode, chunks' ends) and, of products, for many (prefill).
ROWS_FEW, ROWS_MANY = 16, 64
_CPU_PROCESSORS = 4  # under the interpreter
# Shared memory that a program's stages may take, as compilers were seen to allot it.
_SHARED_BYTES = {"sm_80": 160 * 1024, "sm_90": 220 * 1024, "gfx942": 64 * 1024}


@cache
def kind(device: torch.device) -> str:
    """Whose launches serve the device: "gfx942", "sm_90", or "sm_80" for all others."""
    if torch.version.hip is not None:
        return "gfx942"
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return "sm_90" if hopper else "sm_80"


@cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors; compute units on AMD's GPUs."""
    if device.type == "cpu":
        return _CPU_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _decode(
    kind: str, element_bytes: int, cache_bytes: int, head_dim: int, block_size: int, group: int
) -> Launch:
    """Keys and values of one tile take 32 KiB together, so that four programs fit on a
    multiprocessor of 227 KiB and bytes enough are on their way.

    Tried for bf16, head_dim 128, as registers and KiB of shared memory on sm_90: tile 64 with 2
    stages 96, 38 (waits for the block ids); with 3 stages 118, 38; with 5, 128 and 8 bytes
    spilled, 71 (two tiles on their way, but two programs); tile 128 with 2 stages 168, 72. On
    gfx942 a third stage is not worth its share of 64 KiB.

    A tile of float8 is held as bytes and as wide numbers. On NVIDIA's GPUs half a tile keeps four
    programs on a multiprocessor: of head_dim 128, 122 registers on sm_80 in place of 158; of 64,
    where a whole tile spills, 96. Which others of float8 spill has not been tried.
    """
    dims = max(ROWS_MIN, triton.next_power_of_2(head_dim))
    tile_bytes = 8192 if kind == "gfx942" or cache_bytes < element_bytes else 16384
    return {
        "ROWS": max(ROWS_MIN, triton.next_power_of_2(group)),
        "DIMS": dims,
        "TILE": max(ROWS_MIN, tile_bytes // (dims * element_bytes)),
        "num_warps": 4,
        "num_stages": 2 if kind == "gfx942" else 3,
    }


def _decode_alternatives(
    kind: str, element_bytes: int, cache_bytes: int, head_dim: int, block_size: int, group: int
) -> list[Launch]:
    default = _decode(kind, element_bytes, cache_bytes, head_dim, block_size, group)
    if cache_bytes < element_bytes:
        return []
    row_bytes = default["DIMS"] * element_bytes
    return [
        {**default, "TILE": tile_bytes // row_bytes, "num_warps": warps, "num_stages": stages}
        for tile_bytes, warps, stages in _DECODE_TILES[kind]
        if tile_bytes >= ROWS_MIN * row_bytes
    ]


# Bytes of a tile's keys, warps and stages. Of stages, 3 and 4 are the same program here. Not there:
# what spills on sm_90 at some shape: 32 KiB by 2 warps and by 8, and most with 5 stages.
_DECODE_NVIDIA = (
    *product((8192, 16384), (2, 4, 8), (2, 3)),
    (8192, 2, 5),
    (16384, 4, 5),
    (32768, 4, 2),
    (32768, 4, 3),
)
_DECODE_TILES = {
    "sm_80": _DECODE_NVIDIA,
    "sm_90": _DECODE_NVIDIA,
    "gfx942": tuple(product((4096, 8192, 16384), (2, 4, 8), (1, 2))),
}


def _prefill(
    kind: str,
    element_bytes: int,
    cache_bytes: int,
    head_dim: int,
    block_size: int,
    group: int,
    few: bool,
) -> Launch:
    """Tried for bf16, head_dim 128, group 4, as registers and bytes spilled:

        rows  tile  warps    sm_80      sm_90      gfx942
         128    64    8     219   0    177   0    237   0
         128    64    4     255 336    255 240    369   0
         128   128    8     255  72    254   0    256 428
         128    32    8     198   0       -          -
          64    64    4     255  64    196   0    320   0
          64    64    8     183   0       -          -

    On sm_80 the first spills with groups that are no power of two (rows then cost divisions, whose
    results stay) and with soft caps. Of head_dim 256, 64 rows by 64 spill on sm_80 and gfx942. On
    sm_90 a fifth stage is 182 registers and 129 in place of 96 KiB. On gfx942 Triton 3.8 spills of
    all shapes of head_dim over 64 and 3.9 of those with a soft cap, unless tiles are half as long.

    A tile of float8 is held as bytes and as wide numbers: half a tile of few rows is 128 registers
    on sm_90 in place of 192, and of head_dim 256 a whole one spills on sm_80.
    """
    dims = max(ROWS_MIN, triton.next_power_of_2(head_dim))
    row_bytes = dims * element_bytes
    rows, tile = 128, 64
    if few:
        rows, tile = ROWS_FEW, max(16, (8192 if kind == "gfx942" else 16384) // row_bytes)
    elif row_bytes > 256:
        rows, tile = 64, 32
    elif row_bytes > 128 and kind == "sm_80":
        rows, tile = (128, 32) if group == triton.next_power_of_2(group) else (64, 64)
    if kind == "gfx942" and row_bytes > 128 and not few:
        tile //= 2
    narrow = cache_bytes < element_bytes and kind != "gfx942"
    if narrow and (few or (row_bytes > 256 and kind == "sm_80")):
        tile = max(16, tile // 2)
    return {
        "ROWS": max(rows, triton.next_power_of_2(group)),
        "DIMS": dims,
        "TILE": tile,
        "num_warps": 4 if few else 8,
        # Of 128 rows by 32, as much shared memory as 3 stages have, and no spills with a cap.
        "num_stages": 2 if kind == "gfx942" or (rows, tile) == (128, 32) else 3,
    }


def _prefill_alternatives(
    kind: str,
    element_bytes: int,
    cache_bytes: int,
    head_dim: int,
    block_size: int,
    group: int,
    few: bool,
) -> list[Launch]:
    default = _prefill(kind, element_bytes, cache_bytes, head_dim, block_size, group, few)
    if cache_bytes < element_bytes:
        return []
    row_bytes = default["DIMS"] * element_bytes
    if few:
        return [
            {**default, "TILE": tile_bytes // row_bytes, "num_warps": warps, "num_stages": stages}
            for tile_bytes, warps, stages in _DECODE_TILES[kind]
            if tile_bytes >= ROWS_MIN * row_bytes
            and (tile_bytes, warps, stages) not in _PREFILL_FEW_SPILLS
        ]
    return [
        {**default, "ROWS": rows, "TILE": tile, "num_warps": warps, "num_stages": stages}
        for (rows, tile, warps), stages in product(_PREFILL_TILES[kind], _PREFILL_STAGES[kind])
        if rows >= group
        and rows * (default["DIMS"] + tile) < _PREFILL_NUMBERS[kind] * warps
        and row_bytes * (rows + 2 * tile * (stages - 1)) <= _SHARED_BYTES[kind]
    ]


# With masks in place of lengths, these need a few registers more.
_PREFILL_FEW_SPILLS = ((8192, 4, 3), (16384, 8, 2), (32768, 4, 3))
# Rows, tile and warps. sm_90 multiplies 64 rows by 4 warps at a time: tiles of 64 rows by 8 warps
# have their columns cut in two, which spills if they are many.
_PREFILL_TILES = {
    "sm_80": ((64, 32, 4), (64, 64, 4), (64, 64, 8), (64, 128, 8), (128, 32, 8), (128, 64, 8)),
    "sm_90": ((64, 32, 4), (64, 64, 4), (64, 64, 8), (128, 32, 8), (128, 64, 8), (128, 128, 8)),
    "gfx942": ((64, 32, 4), (64, 32, 8), (64, 64, 4), (64, 64, 8), (128, 32, 8), (128, 64, 8)),
}
# Sums and scores of a warp: with this many of them a kernel spills.
_PREFILL_NUMBERS = {"sm_80": 96 * 32, "sm_90": 129 * 32, "gfx942": 40 * 64}
_PREFILL_STAGES = {"sm_80": (2, 3), "sm_90": (2, 3, 5), "gfx942": (1, 2)}


def _product(kind: str, few: bool) -> Launch:
    return {
        "BLOCK_M": ROWS_FEW if few else ROWS_MANY,
        "BLOCK_N": 64,
        "BLOCK_K": 64,
        "num_warps": 4,
        "num_stages": 3,
    }


def _moe(
    kind: str, element_bytes: int, hidden: int, intermediate: int, experts: int, few: bool
) -> Launch:
    return _product(kind, few)


def _moe_alternatives(
    kind: str, element_bytes: int, hidden: int, intermediate: int, experts: int, few: bool
) -> list[Launch]:
    """Both products share one launch, as they share the tiles' rows; the first has two weights."""
    return _products(kind, few, element_bytes, 2 * element_bytes, sums=2)


def _scaled(kind: str, element_bytes: int, inner: int, columns: int, few: bool) -> Launch:
    return _product(kind, few)


def _scaled_alternatives(
    kind: str, element_bytes: int, inner: int, columns: int, few: bool
) -> list[Launch]:
    return _products(kind, few, element_bytes, 1, sums=1)


def _int4(kind: str, element_bytes: int, inner: int, columns: int, half: int, few: bool) -> Launch:
    launch = dict(_product(kind, few))
    del launch["BLOCK_K"]  # half a group is one
    return launch


def _int4_alternatives(
    kind: str, element_bytes: int, inner: int, columns: int, half: int, few: bool
) -> list[Launch]:
    found: list[Launch] = []
    for one in _products(kind, few, 2 * element_bytes, 1, sums=2):
        launch = {name: value for name, value in one.items() if name != "BLOCK_K"}
        if launch not in found:
            found.append(launch)
    return found


def _products(kind: str, few: bool, x_bytes: int, weight_bytes: int, sums: int) -> list[Launch]:
    """Tiles of products, where an element of x and of the weights takes so many bytes, and an
    element of the result so many sums."""
    return [
        {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": stages}
        for m, n, k, warps, stages in (_FEW_PRODUCTS if few else _MANY_PRODUCTS)
        if stages * k * (m * x_bytes + n * weight_bytes) <= _SHARED_BYTES[kind]
        and m * n * sums < _PRODUCT_NUMBERS[kind] * warps
    ]


# Sums of a warp: with this many of them a kernel spills.
_PRODUCT_NUMBERS = {"sm_80": 128 * 32, "sm_90": 129 * 32, "gfx942": 129 * 64}


# Rows, columns, depth, warps and stages. Few rows wait for memory: bytes on their way matter.
_FEW_PRODUCTS = (
    (16, 32, 64, 2, 4), (16, 32, 128, 4, 4), (16, 64, 64, 4, 2), (16, 64, 64, 4, 4),
    (16, 64, 64, 4, 5), (16, 64, 128, 4, 2), (16, 64, 128, 8, 3),
    (16, 128, 64, 4, 3), (16, 128, 64, 8, 3), (16, 128, 128, 8, 2), (16, 128, 128, 8, 3),
)  # fmt: skip
_MANY_PRODUCTS = (
    (32, 64, 64, 4, 3), (32, 128, 64, 4, 3), (64, 64, 64, 4, 2), (64, 64, 64, 4, 4),
    (64, 128, 32, 4, 4), (64, 128, 64, 4, 3), (64, 128, 64, 8, 3), (128, 64, 64, 4, 3),
    (128, 64, 64, 8, 2), (128, 64, 64, 8, 3), (128, 128, 32, 8, 4), (128, 128, 64, 8, 2),
    (128, 128, 64, 8, 3), (128, 128, 64, 8, 4),
)  # fmt: skip


def _fields(*names: str) -> dict[str, type[int]]:
    return {name: bool if name == "few" else int for name in names}


_ATTENTION = ("element_bytes", "cache_bytes", "head_dim", "block_size", "group")
_MATMUL = ("element_bytes", "inner", "columns")
DECODE = Rule("decode", _fields(*_ATTENTION), _decode, _decode_alternatives)
# few: of new tokens a sequence; elsewhere of rows.
PREFILL = Rule("prefill", _fields(*_ATTENTION, "few"), _prefill, _prefill_alternatives)
MOE = Rule(
    "moe",
    _fields("element_bytes", "hidden", "intermediate", "experts", "few"),
    _moe,
    _moe_alternatives,
)
MATMUL_INT8 = Rule("matmul_int8", _fields(*_MATMUL, "few"), _scaled, _scaled_alternatives)
MATMUL_FP8 = Rule("matmul_fp8", _fields(*_MATMUL, "few"), _scaled, _scaled_alternatives)
MATMUL_INT4 = Rule("matmul_int4", _fields(*_MATMUL, "half", "few"), _int4, _int4_alternatives)
RULES = {one.kernel: one for one in (DECODE, PREFILL, MOE, MATMUL_INT8, MATMUL_FP8, MATMUL_INT4)}
