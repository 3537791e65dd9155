"""A replica's prefix cache as engines have it: blocks of 16 tokens, the least recently used go."""

from collections import OrderedDict

BLOCK_TOKENS = 16
BYTES_PER_TOKEN = 4  # of its "tokenizer", which cuts text into pieces of so many bytes


class LruCache:
    """Blocks named by all the text up to their end; within a prompt the tail is evicted first."""

    def __init__(self, capacity_tokens: int) -> None:
        self.blocks_most = capacity_tokens // BLOCK_TOKENS
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def serve(self, prompt: bytes) -> tuple[int, int]:
        """(prompt tokens, cached tokens) as the usage of its answer would say."""
        tokens = len(prompt) // BYTES_PER_TOKEN
        keys = []
        key = 0
        step = BLOCK_TOKENS * BYTES_PER_TOKEN
        for start in range(0, len(prompt) - step + 1, step):
            key = hash((key, prompt[start : start + step]))
            keys.append(key)
        cached = 0
        # The last token is computed in any case: a block that ends with the prompt is no use.
        while cached < (tokens - 1) // BLOCK_TOKENS and keys[cached] in self._blocks:
            cached += 1
        for key in reversed(keys):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self.blocks_most:
            self._blocks.popitem(last=False)
        return tokens, cached * BLOCK_TOKENS

    def clear(self) -> None:
        self._blocks.clear()
