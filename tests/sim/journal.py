"""What happened in a world, line by line: to compare two runs, and to read when one has failed."""

from collections.abc import Callable
from hashlib import blake2b


class Journal:
    """Lines of (moment, who, what). Only the last ones are kept; the digest is of all."""

    def __init__(self, clock: Callable[[], float], kept: int = 4000) -> None:
        self._clock = clock
        self._kept = kept
        self._lines: list[str] = []
        self._digest = blake2b(digest_size=8)
        self.count = 0

    def add(self, who: str, what: str) -> None:
        line = f"{self._clock():.6f} {who}: {what}"
        self._digest.update(line.encode())
        self._lines.append(line)
        self.count += 1
        if len(self._lines) > 2 * self._kept:
            del self._lines[: self._kept]

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def tail(self, count: int) -> list[str]:
        return self._lines[-count:]
