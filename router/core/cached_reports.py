"""What a replica's `cached_tokens` are worth: not every engine reports them, or reports zeros.

As engines do it:

- vLLM reports only with `--enable-prompt-tokens-details`; 0.32 says 0 for a miss, versions before
  leave the field out then (`if enable_prompt_tokens_details and num_cached_tokens`).
- SGLang reports only with `--enable-cache-report`, and leaves the field out for a miss in most
  versions (`UsageProcessor._details_if_cached`).
- llama.cpp's server always reports since pull request 19361, older ones never.
- OpenAI counts in steps of 128 from 1,024 on, and says 0 for every prompt shorter than that.
- Others leave the field out, say null, or always 0.
"""

from math import gcd

# A block of the engines with the smallest: a shorter difference is of no interest.
STEP_TOKENS_LEAST = 16


class CachedReports:
    """Reads one replica's numbers, and not before it has ever reported some tokens as cached."""

    def __init__(self) -> None:
        self._least_tokens: int | None = None
        self._step_tokens = 0  # in which it counts, as far as its numbers tell
        self._says_zero = False

    def read(self, cached_tokens: int | None) -> int | None:
        """How many tokens of a prompt were cached; None if the answer does not tell.

        Args:
            cached_tokens: As an answer with usage reported them; None where it did not.
        """
        if cached_tokens:
            least = self._least_tokens
            self._least_tokens = cached_tokens if least is None else min(least, cached_tokens)
            self._step_tokens = gcd(self._step_tokens, cached_tokens)
            return cached_tokens
        if cached_tokens == 0:
            self._says_zero = True
        if self._least_tokens is None or (cached_tokens is None and self._says_zero):
            return None
        return 0

    def certain_tokens(self, cached_tokens: int) -> int:
        """Where a prompt of which so many tokens were cached may have been cached further on.

        Beyond it the engine would have said so: it would have counted one step more, or, where it
        reported nothing, as much as it was ever seen to report.
        """
        if cached_tokens:
            return cached_tokens + max(self._step_tokens, STEP_TOKENS_LEAST)
        assert self._least_tokens is not None, "a zero is only read once more was reported"
        return self._least_tokens
