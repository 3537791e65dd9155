"""How kernels are launched, by kernel and class of shapes: by the rule made by hand, or as tuned.

    use(tuned)        once, before the first launch      ("decode", "sm_90", 2, 128, 16, 4) → {...}
    rule.launch(...)  at every launch of a kernel        one look into a dictionary

A class's launch never changes while the process runs, or a kernel would be compiled in mid-service.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

# A kernel's name, the kind of GPU, then the values of its rule's fields.
Key = tuple[str | int, ...]
# Tile sizes by the kernel's names of them, num_warps and num_stages.
Launch = Mapping[str, int]

_launches: dict[Key, Launch] = {}


class CannotRun(Exception):
    """A launch cannot run on this GPU, or gives other results; the message says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kernel's launch depends on, and what it may be.

    Attributes:
        kernel: Its name in keys and files.
        fields: What tells a class of shapes, by name: `int`, above zero, or `bool`.
        default: The launch made by hand, for a kind of GPU and the fields' values.
        alternatives: Of the same arguments: the other launches worth measuring, all of them right.
    """

    kernel: str
    fields: Mapping[str, type[int]]
    default: Callable[..., Launch]
    alternatives: Callable[..., list[Launch]]

    def launch(self, kind: str, *shape: int) -> Launch:
        """For a class of shapes on a kind of GPU; not to be changed."""
        key: Key = (self.kernel, kind, *shape)
        found = _launches.get(key)
        if found is None:
            found = _launches[key] = self.default(kind, *shape)
        return found

    def candidates(self, kind: str, *shape: int) -> list[Launch]:
        """The default first, then what else is worth measuring, without repetition."""
        default = self.default(kind, *shape)
        return [default, *(one for one in self.alternatives(kind, *shape) if one != default)]

    def key(self, kind: str, *shape: int) -> Key:
        assert len(shape) == len(self.fields), (self.kernel, shape)
        return (self.kernel, kind, *shape)


def use(tuned: Mapping[Key, Launch]) -> None:
    """From now on these in place of the defaults. Before any kernel is launched."""
    _launches.clear()
    _launches.update(tuned)


@contextmanager
def using(tuned: Mapping[Key, Launch]) -> Iterator[None]:
    """These, and defaults for all others, until the end of the block: for measuring."""
    before = dict(_launches)
    use(tuned)
    try:
        yield
    finally:
        use(before)
