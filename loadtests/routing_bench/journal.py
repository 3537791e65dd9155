"""Results as they come, one JSON line each, so that a run that was cut off goes on."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from loadtests.routing_bench.jobs import Job, Result, Saturate


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Somebody began to compute: the results below are this commit's, on this machine."""

    commit: str
    machine: str


class DamagedJournal(ValueError):
    """A line that is not the last one says nothing: names the file and the line."""


_encoder = msgspec.json.Encoder()
_decoder: "msgspec.json.Decoder[Start | Result]" = msgspec.json.Decoder(Start | Result)


class Journal:
    """
    Attributes:
        results: By job; of a job's results the last counts.
        starts: All there were.
    """

    def __init__(self, path: Path, start: Start, *, resume: bool) -> None:
        """
        Args:
            resume: Keep all results; else only rates of saturation, so that they need not be
                searched for again and loads stay the same.

        Raises:
            DamagedJournal: It is no journal. A last line that was cut off is dropped.
        """
        self.results: dict[Job, Result] = {}
        self.starts: list[Start] = []
        lines = list(_read(path)) if path.exists() else []
        if not resume:
            lines = [
                line
                for line in lines
                if isinstance(line, Result) and isinstance(line.job, Saturate)
            ]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        for line in (*lines, start):
            self._write(line)

    def add(self, result: Result) -> None:
        self._write(result)

    def close(self) -> None:
        self._file.close()

    def _write(self, line: Start | Result) -> None:
        self._file.write(_encoder.encode(line) + b"\n")
        self._file.flush()
        if isinstance(line, Start):
            self.starts.append(line)
        else:
            self.results[line.job] = line


def _read(path: Path) -> Iterator[Start | Result]:
    *lines, cut_off = path.read_bytes().split(b"\n")
    del cut_off  # nothing, if the file ends as it should
    for number, line in enumerate(lines, start=1):
        try:
            yield _decoder.decode(line)
        except msgspec.DecodeError as error:
            raise DamagedJournal(f"{path}:{number}: {error}") from error
