"""A map from engine hashes to places, for millions of blocks: 16 bytes of data an entry.

A dict of int to int takes 120 bytes an entry and stops the world when it grows. Here a bucket is
one bytearray of records (hash, place), searched by memcmp, and *linear hashing* grows the table
one bucket at a time: the next bucket in turn is split in two whenever there are too many entries.

    mask = 3, split = 1:   bucket 0 was split into 0 and 4; hashes that end in 0 go by three bits,
                           the others by two

Source: Litwin 1980, "Linear hashing: a new tool for file and table addressing".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct

_RECORD = Struct("<QQ")
_HASH_BYTES, _RECORD_BYTES = 8, 16
# Entries a bucket: fewer cost memory, more cost time to search.
_BUCKET_ENTRIES = 16


class BlockTable:
    """Unsigned 64-bit hashes to unsigned 64-bit places."""

    __slots__ = ("_buckets", "_entries", "_mask", "_split")

    def __init__(self) -> None:
        self._buckets = [bytearray()]
        self._entries = 0
        self._mask = 0  # buckets of this round at its start, less one
        self._split = 0  # buckets of this round that have been split

    def reserve(self, entries: int) -> None:
        """Make room for so many entries in an empty table, rather than bucket by bucket."""
        assert not self._entries, "only an empty table can be laid out anew"
        bits = (entries // _BUCKET_ENTRIES).bit_length()
        self._buckets = [bytearray() for _ in range(1 << bits)]
        self._mask = (1 << bits) - 1
        self._split = 0

    def __len__(self) -> int:
        return self._entries

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for bucket in self._buckets:
            yield from _RECORD.iter_unpack(bucket)

    def place(self, hash: int) -> int | None:
        """Where the block is."""
        number = hash & self._mask
        if number < self._split:
            number = hash & (2 * self._mask + 1)
        bucket = self._buckets[number]
        key = hash.to_bytes(_HASH_BYTES, "little")
        at = bucket.find(key)
        if at < 0:
            return None
        if at % _RECORD_BYTES:
            at = _find(bucket, key)
            if at < 0:
                return None
        place: int = _RECORD.unpack_from(bucket, at)[1]
        return place

    def add(self, hashes: Sequence[int], first_place: int) -> int | None:
        """New hashes, at `first_place` and the places after it.

        Returns:
            None; or the first hash that has a place already, and then nothing was changed.
        """
        self._entries += len(hashes)
        while self._entries > _BUCKET_ENTRIES * len(self._buckets):
            self._split_next()
        buckets, mask, split, pack = self._buckets, self._mask, self._split, _RECORD.pack
        for place, hash in enumerate(hashes, first_place):
            number = hash & mask
            if number < split:
                number = hash & (2 * mask + 1)
            bucket = buckets[number]
            record = pack(hash, place)
            if bucket.find(record[:_HASH_BYTES]) >= 0 and self.place(hash) is not None:
                done = place - first_place
                self._entries -= len(hashes) - done
                self.remove(hashes[:done])
                return hash
            bucket += record
        return None

    def remove(self, hashes: Iterable[int]) -> None:
        """Forget hashes that are there."""
        buckets, mask, split = self._buckets, self._mask, self._split
        for hash in hashes:
            number = hash & mask
            if number < split:
                number = hash & (2 * mask + 1)
            bucket = buckets[number]
            key = hash.to_bytes(_HASH_BYTES, "little")
            at = bucket.find(key)
            if at % _RECORD_BYTES:
                at = _find(bucket, key)
            assert at >= 0, "only what is there is removed"
            last = len(bucket) - _RECORD_BYTES
            if at != last:
                bucket[at : at + _RECORD_BYTES] = bucket[last:]
            del bucket[last:]
            self._entries -= 1

    def shrink(self, buckets: int) -> bool:
        """Free up to so many buckets with all they hold, of a table that is no longer asked;
        whether there are more."""
        del self._buckets[-buckets:]
        return bool(self._buckets)

    def _split_next(self) -> None:
        bucket = bytes(self._buckets[self._split])
        byte, bit = divmod((self._mask + 1).bit_length() - 1, 8)
        records = [bucket[at : at + _RECORD_BYTES] for at in range(0, len(bucket), _RECORD_BYTES)]
        stay = [record for record in records if not record[byte] >> bit & 1]
        move = [record for record in records if record[byte] >> bit & 1]
        self._buckets[self._split] = bytearray().join(stay)
        self._buckets.append(bytearray().join(move))
        self._split += 1
        if self._split > self._mask:
            self._mask = 2 * self._mask + 1
            self._split = 0

    def check(self) -> None:
        """Assert what must always hold."""
        assert len(self._buckets) == self._mask + 1 + self._split, "a bucket for every number"
        assert self._entries == sum(1 for _ in self), "entries are counted right"
        for number, bucket in enumerate(self._buckets):
            for hash, _ in _RECORD.iter_unpack(bucket):
                low = hash & self._mask
                right = low if low >= self._split else hash & (2 * self._mask + 1)
                assert right == number, "a hash lies in its bucket"


def _find(bucket: bytearray, key: bytes) -> int:
    """Where the record of `key` begins; below 0 if there is none."""
    at = bucket.find(key)
    while at >= 0 and at % _RECORD_BYTES:
        at = bucket.find(key, at + 1)  # bytes of other records that happen to look like it
    return at
