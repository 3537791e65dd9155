"""Forbidding tokens: only the logits of forbidden tokens are written, and none is read."""

import torch
import triton
import triton.language as tl

from kernels.ahead import Case

_WORD_BITS = 32
_BLOCK = 1024
_WARPS = 4


def logits_mask(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Sets the logits of forbidden tokens to -inf, in place, and returns them.

    Args:
        logits: [rows, vocabulary], any float dtype; contiguous.
        masks: [rows, ⌈vocabulary / 32⌉] int32: bit t % 32 of word t // 32 is 1 where token t is
            allowed. What bits past the vocabulary say does not matter.

    Source: the layout that grammar compilers share (XGrammar, llguidance).
    """
    rows, vocabulary = logits.shape
    assert masks.shape == (rows, triton.cdiv(vocabulary, _WORD_BITS)), masks.shape
    assert masks.dtype == torch.int32
    assert logits.is_contiguous()
    assert masks.is_contiguous()
    grid = (rows, triton.cdiv(vocabulary, _BLOCK))
    logits_mask_kernel[grid](logits, masks, vocabulary, _BLOCK, num_warps=_WARPS, num_stages=1)
    return logits


# A step's rows may be views into longer tensors: their alignment must not choose a variant, and
# what is written one by one gains nothing from it.
@triton.jit(do_not_specialize_on_alignment=["logits", "masks"])
def logits_mask_kernel(
    logits: tl.tensor, masks: tl.tensor, VOCABULARY: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """BLOCK tokens of one row of [rows, VOCABULARY]."""
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < VOCABULARY
    words: tl.constexpr = (VOCABULARY + 31) // 32
    word = tl.load(masks + row * words + tokens // 32, mask=inside, other=0)
    forbidden = ((word >> (tokens % 32)) & 1) == 0
    never = tl.full((BLOCK,), float("-inf"), dtype=logits.dtype.element_ty)
    tl.store(logits + row * VOCABULARY + tokens, never, mask=inside & forbidden)


def cases() -> list[Case]:
    """Vocabularies of SmolLM2, Llama 3 and Qwen 3."""
    return [
        Case(
            name=f"logits_mask {dtype} {vocabulary}",
            kernel=logits_mask_kernel,
            types={"logits": f"*{dtype}", "masks": "*i32"},
            constants={"VOCABULARY": vocabulary, "BLOCK": _BLOCK},
            num_warps=_WARPS,
            num_stages=1,
        )
        for dtype in ("bf16", "fp32")
        for vocabulary in (49152, 128256, 151936)
    ]
