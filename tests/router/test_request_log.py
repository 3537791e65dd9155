"""Lines are stamped when they come and written soon after, none lost."""

import asyncio
import io
import logging
import re
import select

from router.request_log import FLUSH_S, RequestLog


class Watched(io.StringIO):
    """Tells when it was flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = asyncio.Event()
        self.flushes = 0
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return super().write(text)

    def flush(self) -> None:
        self.flushes += 1
        self.flushed.set()


async def test_lines_are_written_together_without_being_asked_for() -> None:
    file = Watched()
    log = RequestLog(file)
    log.add("a=1")
    log.add("b=2")
    assert file.getvalue() == ""
    async with asyncio.timeout(100 * FLUSH_S):
        await file.flushed.wait()
    assert file.flushes == 1
    assert [line.rpartition(" ")[2] for line in file.getvalue().splitlines()] == ["a=1", "b=2"]


async def test_many_lines_do_not_wait() -> None:
    file = Watched()
    log = RequestLog(file)
    for number in range(2500):
        log.add(str(number))
    assert file.flushes > 0
    log.flush()
    assert all(len(piece) <= select.PIPE_BUF and piece.endswith("\n") for piece in file.written)
    numbers = [int(line.rpartition(" ")[2]) for line in file.getvalue().splitlines()]
    assert numbers == list(range(2500))


async def test_a_line_looks_like_one_of_the_standard_librarys() -> None:
    file = Watched()
    log = RequestLog(file)
    log.add("a=1")
    log.flush()
    record = logging.LogRecord("router.requests", logging.INFO, "", 0, "a=1", (), None)
    standard = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s").format(record)
    assert re.sub(r"\d", "0", file.getvalue()) == re.sub(r"\d", "0", standard) + "\n"
