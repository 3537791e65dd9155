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
from hashlib import blake2b
from typing import NamedTuple

_ROOT = blake2b(b"warmroute block chain 1", digest_size=8).digest()


class BlockKey(NamedTuple):
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


def block_keys(
    parent_hash: int | None,
    token_ids: Sequence[int],
    block_size: int,
    extra_keys: tuple[str, ...] | None,
) -> list[BlockKey]:
    """The keys of full blocks with `token_ids`, one below the other, the first below `parent_hash`.

    Args:
        token_ids: Each in [0, 2³²); a multiple of `block_size`.
        extra_keys: Of the first block; must be None unless `parent_hash` is.
    """
    assert parent_hash is None or extra_keys is None, "extra keys belong to the first block"
    assert len(token_ids) % block_size == 0, "only full blocks have keys"
    token_bytes = array("I", token_ids).tobytes()
    width, keys = 4 * block_size, []
    for start in range(0, len(token_bytes), width):
        key = _block_key(parent_hash, token_bytes[start : start + width], extra_keys)
        keys.append(key)
        parent_hash, extra_keys = key.hash, None
    return keys


def _block_key(
    parent_hash: int | None, token_bytes: bytes, extra_keys: tuple[str, ...] | None
) -> BlockKey:
    digest = blake2b(
        _ROOT if parent_hash is None else parent_hash.to_bytes(8, "little"), digest_size=8
    )
    digest.update(token_bytes)
    for key in extra_keys or ():
        encoded = key.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return BlockKey(int.from_bytes(digest.digest(), "little"), parent_hash, token_bytes, extra_keys)


def tokens_of(key: BlockKey) -> list[int]:
    """The tokens of a block, as they were given to `block_keys`."""
    tokens = array("I")
    tokens.frombytes(key.token_bytes)
    return tokens.tolist()
