"""How much a replica that reports no events can cache, judged by how far back its hits lie.

The *distance* of a cached prefix is what was used since it was last used, itself included, in
tokens. A cache that evicts its least recently used blocks and holds C tokens still has what lies
nearer than C and nothing that lies further. So a hit further back than the estimate says it is too
low, a miss nearer than the estimate that it is too high, and either draws it part of the way.

Source: Mattson et al. 1970, "Evaluation techniques for storage hierarchies", stack distances.
"""

# What is assumed before the first surprise: a large GPU beside a small model, or a small one beside
# a smaller: 500,000 tokens of 128 KiB are 61 GiB.
START_TOKENS = 500_000
# Estimates stay within these: the router keeps about four bytes of text for each token believed.
LEAST_TOKENS = 2_048
MOST_TOKENS = 8_000_000
# A surprise draws the estimate this share of the way to its distance: one odd answer does little,
# a handful that agree are believed.
PULL = 0.25
# ... and no answer raises it by more than this factor, however far back its hit was.
GROWTH_MOST = 2.0


class CacheEstimate:
    """One replica's capacity in tokens: drawn by each surprise, so that it follows changes."""

    def __init__(self) -> None:
        self.tokens = float(START_TOKENS)

    def held(self, distance_tokens: float) -> None:
        """What was last used so long ago was still cached."""
        if distance_tokens > self.tokens:
            drawn = self.tokens + PULL * (distance_tokens - self.tokens)
            self.tokens = min(drawn, self.tokens * GROWTH_MOST, MOST_TOKENS)

    def lacked(self, distance_tokens: float) -> None:
        """What was last used so short ago was not cached any more."""
        if distance_tokens < self.tokens:
            drawn = self.tokens + PULL * (distance_tokens - self.tokens)
            self.tokens = max(drawn, LEAST_TOKENS)

    def check(self) -> None:
        assert LEAST_TOKENS <= self.tokens <= MOST_TOKENS
