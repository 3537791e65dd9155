"""The operations as Triton kernels, for GPUs: same names, arguments and results as `torch_ops`."""

from kernels.triton_ops.activation import silu_mul
from kernels.triton_ops.attention_decode import paged_attention_decode
from kernels.triton_ops.attention_prefill import paged_attention_prefill
from kernels.triton_ops.masking import logits_mask
from kernels.triton_ops.moe import moe
from kernels.triton_ops.norm import add_rms_norm, rms_norm
from kernels.triton_ops.quantised import matmul_fp8, matmul_int4, matmul_int8
from kernels.triton_ops.rope import rope_and_cache_write
from kernels.triton_ops.sampling import sample

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
