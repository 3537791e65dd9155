"""What an index must do to be measured."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from loadtests.index_bench.data_set import DataSet

BLOCK_TOKENS = 16


class Contestant(Protocol):
    """An index of what replicas hold, fed with their events. Replicas have numbers."""

    @property
    def tokenises(self) -> bool:
        """Whether matching text means to tokenise it first."""
        ...

    def prepare(self, source: Path) -> Path:
        """Frames as this contestant reads them off its own wire; `source` itself if the same."""
        ...

    def apply(self, replica: int, payload: bytes) -> None:
        """One event batch, from wire to index."""
        ...

    def settle(self) -> None:
        """Returns when all that was applied can be found."""
        ...

    def match_tokens(self, tokens: list[int]) -> Any:
        """Who holds how much of a prompt given as tokens, in the contestant's own words."""
        ...

    def match_text(self, text: bytes) -> Any:
        """The same of a prompt given as text."""
        ...

    def holders(self, match: Any) -> Mapping[int, int]:
        """Tokens by replica that a match tells."""
        ...

    def forget(self, replica: int) -> Iterator[None]:
        """Drops a replica; each step is a time that nothing else can run."""
        ...


def load_tokenizer(data: DataSet) -> Tokenizer:
    return Tokenizer.from_file(str(data.tokenizer_path))
