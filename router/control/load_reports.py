"""Listens to a replica's load reports; the last one is what operators see."""

import logging
from collections.abc import Callable

import msgspec
import zmq
import zmq.asyncio

from protocol.load_report import LoadReport, decode_load_report

log = logging.getLogger(__name__)


async def follow_load_reports(
    endpoint: str, context: zmq.asyncio.Context, on_report: Callable[[LoadReport], None]
) -> None:
    """Runs until cancelled. A message that is no load report is logged once and skipped."""
    socket = context.socket(zmq.SUB)
    complained = False
    try:
        socket.linger = 0
        socket.subscribe(b"")
        socket.connect(endpoint)
        while True:
            frames = await socket.recv_multipart()
            try:
                on_report(decode_load_report(frames[-1]))
            except msgspec.DecodeError as error:
                if not complained:
                    log.warning("%s: not a load report: %s", endpoint, error)
                    complained = True
    finally:
        socket.close(linger=0)
