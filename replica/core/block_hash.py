"""A block's name: a stable 64-bit hash of its tokens and of everything before them.

    name(i) = blake2b-64( name(i - 1) ‖ tokens of block i ‖ extra keys )

The first block's parent is a fixed root, so that the same prompt has the same names in every
replica and after every restart. The cache salt (later: the LoRA adapter's name) enters with the
first block and so reaches all blocks below it.

Two different blocks may share a name by chance or by malice (64 bits): whoever finds a block by
its name compares the content too (`BlockPool.match`).
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

_ROOT = blake2b(b"warmroute block chain 1", digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class BlockKey:
    """What a full block holds.

    Attributes:
        hash: Its name, 64 bits.
        parent_hash: Name of the block before it; None for a sequence's first block.
        token_bytes: Its tokens, four bytes each.
        extra_keys: What beside the tokens tells it from others: only on a first block.
    """

    hash: int
    parent_hash: int | None
    token_bytes: bytes
    extra_keys: tuple[str, ...] | None = None


def block_key(
    parent_hash: int | None, token_ids: Sequence[int], extra_keys: tuple[str, ...] | None
) -> BlockKey:
    """The key of a full block with `token_ids` below `parent_hash`.

    Args:
        token_ids: Each in [0, 2³²).
        extra_keys: Must be None unless `parent_hash` is.
    """
    assert parent_hash is None or extra_keys is None, "extra keys belong to the first block"
    token_bytes = array("I", token_ids).tobytes()
    digest = blake2b(
        _ROOT if parent_hash is None else parent_hash.to_bytes(8, "little"), digest_size=8
    )
    digest.update(token_bytes)
    for key in extra_keys or ():
        encoded = key.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return BlockKey(int.from_bytes(digest.digest(), "little"), parent_hash, token_bytes, extra_keys)


def tokens_of(key: BlockKey) -> list[int]:
    """The tokens of a block, as they were given to `block_key`."""
    tokens = array("I")
    tokens.frombytes(key.token_bytes)
    return tokens.tolist()
