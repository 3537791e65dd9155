"""The replica's composition root: binds the port, starts the engine process, serves until told.

    run ── serve ─┬─ HTTP server            from the first moment, so that /ready can answer 503
                  ├─ engine process         loads the model, computes
                  ├─ task: receive          the engine's messages
                  ├─ task: watch            the engine's end
                  └─ task: load             tokenizer and template, in a thread

Whatever happens first decides: a signal (exit code 0), the engine's end or a model that cannot be
loaded (exit code 1, one line says why).
"""

import asyncio
import logging
import os
import secrets
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence

import uvloop
from aiohttp import web

from prompt.assets import prompt_assets_of, resolve_model_path
from prompt.errors import PromptError
from prompt.model_files import open_model_files
from replica.api.context import ApiContext, ServedModel
from replica.api.server import build_runner
from replica.config import ReplicaConfig
from replica.engine.child import ENGINE_COMMAND, EngineChild, describe_exit
from replica.engine.client import EngineClient
from replica.engine.process import EXIT_COULD_NOT_START, EngineStart
from replica.metrics import ReplicaMetrics
from replica.sampling_defaults import OPENAI_DEFAULTS, read_sampling_defaults

LoadText = Callable[[ReplicaConfig], ServedModel]

_ENGINE_STOP_TIMEOUT_S = 5.0
# After the engine's end: for its last message to arrive, and for errors to reach the clients.
_LAST_WORDS_TIMEOUT_S = 1.0


class CannotRun(Exception):
    """The replica cannot start or go on; the message is the line for the operator."""


def run(config: ReplicaConfig) -> int:
    """Serves until SIGTERM or SIGINT; returns the process's exit code."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(config))


async def serve(
    config: ReplicaConfig,
    *,
    engine_command: Sequence[str] = ENGINE_COMMAND,
    load_text: LoadText | None = None,
    on_listening: Callable[[str], None] = lambda url: None,
) -> int:
    """`run` on the present loop.

    Args:
        engine_command: The engine process to start.
        load_text: Loads tokenizer and template; runs in a thread.
        on_listening: Called with the base URL once the port is bound.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        replica = Replica(config)
        try:
            await replica.listen(on_listening)
            await replica.run_until(stop, engine_command, load_text or load_served_text)
        finally:
            await replica.close()
    except CannotRun as error:
        _say(f"replica {config.id}: {error}")
        return 1
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    _say(f"replica {config.id}: stopped")
    return 0


class Replica:
    """One replica's parts while it lives. `close` must be called, whatever happened."""

    def __init__(self, config: ReplicaConfig) -> None:
        self._config = config
        self._told_percent = 0
        metrics = ReplicaMetrics(config)
        self._client = EngineClient(
            on_stats=metrics.update,
            on_progress=self._tell_progress,
        )
        self._api = ApiContext(
            config=config,
            client=self._client,
            metrics=metrics,
            random_seed=lambda: secrets.randbits(63),
            started_at_s=int(time.time()),
        )
        self._runner: web.AppRunner = build_runner(self._api)
        self._child: EngineChild | None = None

    async def listen(self, on_listening: Callable[[str], None]) -> None:
        """Raises CannotRun when the port cannot be bound."""
        await self._runner.setup()
        listen = self._config.listen
        site = web.TCPSite(self._runner, listen.host, listen.port, reuse_address=True)
        try:
            await site.start()
        except OSError as error:
            # asyncio's own text repeats the address; a failed look-up has no errno of the system.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise CannotRun(f"listen: cannot bind {listen.host}:{listen.port}: {reason}") from error
        host, port = self._runner.addresses[0][:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        _say(f"replica {self._config.id}: listening on {url}, loading {self._config.model.name}")
        on_listening(url)

    async def run_until(
        self, stop: asyncio.Event, engine_command: Sequence[str], load_text: LoadText
    ) -> None:
        """Starts the engine and loads the model; returns when `stop` is set.

        Raises:
            CannotRun: the model cannot be loaded, or the engine ended.
        """
        start = EngineStart(
            config=self._config,
            requests=self._client.requests_endpoint,
            answers=self._client.answers_endpoint,
            epoch=uuid.uuid4().hex,
        )
        try:
            self._child = await EngineChild.start(start, engine_command)
        except OSError as error:
            raise CannotRun(f"the engine process cannot be started: {error}") from error
        receive = asyncio.create_task(self._client.receive())
        watch = asyncio.create_task(self._watch(self._child))
        load = asyncio.create_task(self._load(load_text))
        stopped = asyncio.create_task(stop.wait())
        try:
            pending: set[asyncio.Task[None] | asyncio.Task[bool]] = {receive, watch, load, stopped}
            while not stopped.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises what ended it
            _say(f"replica {self._config.id}: stopping")
            await self._runner.cleanup()
        finally:
            for task in (receive, watch, load, stopped):
                task.cancel()
            await asyncio.gather(receive, watch, load, stopped, return_exceptions=True)

    async def close(self) -> None:
        """Every request answered or aborted, every process and socket gone."""
        await self._runner.cleanup()
        if self._child is not None:
            if self._client.is_ready:
                self._client.shut_down()
            else:
                self._child.kill()  # it reads no messages while it loads, and holds nothing
            await self._child.stop(_ENGINE_STOP_TIMEOUT_S)
        self._client.close()

    async def _load(self, load_text: LoadText) -> None:
        """Sets the served model once both halves of it are loaded."""
        try:
            model = await asyncio.to_thread(load_text, self._config)
        except (OSError, ValueError, PromptError) as error:
            raise CannotRun(str(error)) from error
        await self._client.ready
        self._api.model = model
        _say(f"replica {self._config.id}: ready, serving {self._config.model.name}")

    async def _watch(self, child: EngineChild) -> None:
        """Raises CannotRun when the engine process ends."""
        code = await child.wait()
        # A Failed message says more than an exit code; it may still be on its way.
        try:
            async with asyncio.timeout(
                _LAST_WORDS_TIMEOUT_S if code == EXIT_COULD_NOT_START else 0.01
            ):
                await self._client.ended.wait()
            failed = True
        except TimeoutError:
            failed = False
            self._client.end(f"engine process: {describe_exit(code)}")
        # Requests in flight have been told; their answers leave before the server closes.
        await self._client.idle(_LAST_WORDS_TIMEOUT_S)
        if failed:
            raise CannotRun(str(self._client.ended_because))
        last = "".join(f"\n  engine: {line}" for line in child.last_lines)
        raise CannotRun(f"the engine process ended: {describe_exit(code)}{last}")

    def _tell_progress(self, fraction: float) -> None:
        percent = int(fraction * 10) * 10
        if percent > self._told_percent:
            self._told_percent = percent
            _say(f"replica {self._config.id}: loading model {percent} %")


def load_served_text(config: ReplicaConfig) -> ServedModel:
    """Tokenizer and chat template of the configured model.

    Raises:
        PromptError, OSError, ValueError: its files are missing or wrong; one line says how.
    """
    path = resolve_model_path(config.model.path)
    # Imported here: it takes seconds, and the port should answer before.
    from replica.tokenizer import Tokenizer

    files = open_model_files(path)
    return ServedModel(
        tokenizer=Tokenizer.of(files),
        chat_template=prompt_assets_of(files).chat_template,
        sampling=(
            read_sampling_defaults(path)
            if config.model.generation_config == "auto"
            else OPENAI_DEFAULTS
        ),
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
