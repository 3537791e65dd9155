"""`warmroute up`: router and replicas as child processes; one terminal, one Ctrl-C.

Children are stopped when this process ends, however it ends: their stdin is a pipe from here.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from pathlib import Path

import httpx

from cli.config_file import UpConfig

_LAST_LINES = 20
_STOP_GRACE_S = 5.0
_POLL_INTERVAL_S = 0.2
_READ_LIMIT_BYTES = 1024 * 1024


class _Child:
    """One child process, its output passed on line by line under its name."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    @classmethod
    async def start(cls, name: str, *arguments: str) -> "_Child":
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cli.main", *arguments, "--stop-with-stdin",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_READ_LIMIT_BYTES,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )  # fmt: skip
        return cls(name, process)

    async def pass_output_on(self, width: int) -> None:
        """Until the child ends. Returns only then."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            text = line.decode(errors="replace").rstrip()
            self.last_lines.append(text)
            print(f"{self.name:<{width}} | {text}", file=sys.stderr, flush=True)
        await self.process.wait()

    def stop(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()

    def kill(self) -> None:
        """Ends it and what shares its session: a replica's engine need not see it go."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def run(path: Path, config: UpConfig) -> int:
    """Returns the exit code: 0 after Ctrl-C or SIGTERM, 1 when a child died."""
    return asyncio.run(_run(path, config))


async def _run(path: Path, config: UpConfig) -> int:
    stopped = asyncio.Event()
    children: list[_Child] = []

    def on_signal() -> None:
        """The first asks all to finish; the second does not wait for that."""
        if stopped.is_set():
            for child in children:
                child.kill()
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)

    children += [
        await _Child.start(replica.id, "replica", "-c", str(path), "--id", replica.id)
        for replica in config.replicas
    ]
    children.append(await _Child.start("router", "router", "-c", str(path)))
    width = max(len(child.name) for child in children)
    outputs = {
        asyncio.create_task(child.pass_output_on(width), name=child.name): child
        for child in children
    }
    announce = asyncio.create_task(_announce_when_ready(config))
    stop = asyncio.create_task(stopped.wait())
    try:
        done, _ = await asyncio.wait({stop, *outputs}, return_when=asyncio.FIRST_COMPLETED)
        if stop in done:
            print("\nstopping", file=sys.stderr, flush=True)
            return 0
        for task, child in outputs.items():
            if task in done:
                task.result()  # its exception, if it has one
                _report_death(child)
        return 1
    finally:
        announce.cancel()
        stop.cancel()
        # A router that drains may take as long as it is configured to.
        timeout_s = config.router.timeouts.drain_s + _STOP_GRACE_S
        await _stop_all(children, outputs, timeout_s)


def _report_death(child: _Child) -> None:
    print(
        f"\nwarmroute: {child.name} ended with exit code {child.process.returncode}; "
        "its last lines:",
        file=sys.stderr,
    )
    for line in child.last_lines:
        print(f"    {line}", file=sys.stderr)
    sys.stderr.flush()


async def _stop_all(
    children: list[_Child], outputs: dict[asyncio.Task[None], _Child], timeout_s: float
) -> None:
    """The router first, so that it finishes what runs while there are replicas to answer."""
    for group in (children[-1:], children[:-1]):
        for child in group:
            child.stop()
        tasks = [task for task, child in outputs.items() if child in group]
        if not tasks:
            continue
        _, pending = await asyncio.wait(tasks, timeout=timeout_s)
        if pending:
            for child in group:
                child.kill()
            await asyncio.wait(pending)


async def _announce_when_ready(config: UpConfig) -> None:
    """Prints how to use it, once every replica is ready and the router knows it."""
    listen, admin = config.router.listen, config.router.admin
    url = _local_url(listen.host, listen.port, "http" if listen.tls is None else "https")
    urls = [f"{_local_url(r.listen.host, r.listen.port)}/ready" for r in config.replicas]
    if listen.tls is not None and listen.tls.client_ca is not None:
        urls.append(f"{_local_url(admin.host, admin.port)}/health")  # it lets nobody in like us
    else:
        urls.append(f"{url}/ready")
    # Its certificate is for other names than this machine's address; it gets no secret from us.
    async with httpx.AsyncClient(timeout=2.0, trust_env=False, verify=False) as http:
        for ready_url in urls:
            await _until_ready(http, ready_url)
    model = config.router.models[0].name
    print(
        f"""
warmroute is ready at {url} (admin http://{admin.host}:{admin.port})

  curl {url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

  from openai import OpenAI; client = OpenAI(base_url="{url}/v1", api_key="none")

  warmroute chat --url {url}        Ctrl-C stops everything
""",
        flush=True,
    )


async def _until_ready(http: httpx.AsyncClient, url: str) -> None:
    while True:
        with contextlib.suppress(httpx.TransportError):
            if (await http.get(url)).status_code == 200:
                return
        await asyncio.sleep(_POLL_INTERVAL_S)


def _local_url(host: str, port: int, scheme: str = "http") -> str:
    """How to reach a listener of this machine from this machine."""
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"{scheme}://{local}:{port}"
