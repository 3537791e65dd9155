"""The reference operations: what every other backend must compute, and the CPU's own backend.

Shapes they share:
    tokens      rows of a flat batch: the tokens of all sequences, one sequence after the other
    kv_cache    [2, blocks, block_size, kv_heads, head_dim], keys then values, of one layer;
                in the dtype of the tokens, or float8_e4m3fn with a scale for keys and one for
                values (see `kernels.kv_cache`)
    block_tables  [sequences, max_blocks] int32: the physical block of each logical block; entries
                past a sequence's last block may hold anything that is a valid block
"""

from kernels.torch_ops.activation import silu_mul
from kernels.torch_ops.attention import paged_attention_decode, paged_attention_prefill
from kernels.torch_ops.masking import logits_mask
from kernels.torch_ops.moe import moe
from kernels.torch_ops.norm import add_rms_norm, rms_norm
from kernels.torch_ops.quantised import matmul_fp8, matmul_int4, matmul_int8
from kernels.torch_ops.rope import rope_and_cache_write
from kernels.torch_ops.sampling import sample

__all__ = [
    "add_rms_norm",
    "logits_mask",
    "matmul_fp8",
    "matmul_int4",
    "matmul_int8",
    "moe",
    "paged_attention_decode",
    "paged_attention_prefill",
    "rms_norm",
    "rope_and_cache_write",
    "sample",
    "silu_mul",
]
