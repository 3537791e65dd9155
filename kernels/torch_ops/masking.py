"""Forbidding tokens: a grammar's bit masks applied to logits."""

import torch

_WORD_BITS = 32


def logits_mask(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Sets the logits of forbidden tokens to -inf, in place, and returns them.

    Args:
        logits: [rows, vocabulary], any float dtype.
        masks: [rows, ⌈vocabulary / 32⌉] int32: bit t % 32 of word t // 32 is 1 where token t is
            allowed. What bits past the vocabulary say does not matter.

    Source: the layout that grammar compilers share (XGrammar, llguidance).
    """
    rows, vocabulary = logits.shape
    assert masks.shape == (rows, -(-vocabulary // _WORD_BITS)), masks.shape
    assert masks.dtype == torch.int32
    tokens = torch.arange(vocabulary, device=logits.device)
    words = masks[:, tokens // _WORD_BITS]
    allowed = (words >> (tokens % _WORD_BITS).to(torch.int32)) & 1
    return logits.masked_fill_(allowed == 0, -torch.inf)
