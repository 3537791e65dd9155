"""Names for a prompt's blocks: each says its tokens and all before it, so equal means same prefix.

    name(i) = hash(name(i - 1), tokens of block i)

The hash is Python's own, 64 bits: names serve as keys within one process and never decide an
order, so that they may differ from run to run while choices do not.
"""

from array import array
from collections.abc import Iterator, Sequence

TOKEN_BYTES = 4

# Peers that index text count characters. What English takes in common vocabularies.
CHARACTERS_PER_TOKEN = 4

ROOT = 0


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Four bytes a token. Each token must be in [0, 2³²)."""
    if isinstance(tokens, array) and tokens.typecode == "I":
        return tokens.tobytes()
    return array("I", tokens).tobytes()


def full_blocks(tokens: Sequence[int], block_tokens: int) -> Iterator[int]:
    """Names of the full blocks from the first on, made as they are asked for."""
    return below(ROOT, token_bytes(tokens), block_tokens)


def below(name: int, data: bytes, block_tokens: int) -> Iterator[int]:
    """Names of the full blocks of `data` (four bytes a token) that hang below `name`."""
    size = block_tokens * TOKEN_BYTES
    for at in range(0, len(data) - size + 1, size):
        name = hash((name, data[at : at + size]))
        yield name


def chunks(tokens: Sequence[int], chunk_tokens: int) -> Iterator[int]:
    """The same with a last chunk that may be shorter."""
    data = token_bytes(tokens)
    size = chunk_tokens * TOKEN_BYTES
    name = ROOT
    for at in range(0, len(data), size):
        name = hash((name, data[at : at + size]))
        yield name
