"""`python -m router.worker`: one of a router's worker processes.

Its standard input is a pipe that the supervisor holds open: the first line is a `WorkerStart` as
JSON, and the end of the stream says that the supervisor is gone, however it went: then the worker
drains and ends, too. On its standard output it says READY, once.
"""

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import msgspec
import uvloop

from router.app import serve
from router.config import RouterConfig
from router.seat import Seat, SharedBoards
from router.start import StartFailed

READY = b"ready\n"
_STDIN, _STDOUT = 0, 1
_READ_BYTES = 65536


class WorkerStart(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told at its birth.

    Attributes:
        config: The router's, with this worker's share of its limits.
        workers: How many there are.
        number: Which one this is, from 0.
        board: Descriptor of the memory for the workers' leases.
    """

    config: RouterConfig
    workers: int
    number: int
    board: int
    admin_socket: str
    log_level: str


def main() -> int:
    start = msgspec.json.decode(_first_line(), type=WorkerStart)
    # Looked up for each record, and not in our format.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(
        level=start.log_level,
        format=f"%(asctime)s %(levelname)s worker {start.number} %(name)s: %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    seat = Seat(
        number=start.number,
        boards=SharedBoards(start.config.models, start.workers, start.board).of_worker(
            start.number
        ),
        admin_socket=Path(start.admin_socket),
        on_ready=lambda: _say(READY),
    )
    threading.Thread(target=_end_with_supervisor, name="end-with-supervisor", daemon=True).start()
    try:
        return uvloop.run(serve(start.config, seat))
    except StartFailed as error:
        print(f"warmroute router: {error}", file=sys.stderr)
        return 1


def _first_line() -> bytes:
    """Read by hand: what a buffered reader has taken, the thread below would miss."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(_STDIN, _READ_BYTES)
        if not piece:
            break
        line += piece
    return line


def _say(word: bytes) -> None:
    os.write(_STDOUT, word)


def _end_with_supervisor() -> None:
    while os.read(_STDIN, _READ_BYTES):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
