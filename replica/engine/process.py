"""The engine as a process of its own: reads its orders, loads the model, runs the loop.

Its standard input is a pipe that the API process holds open: the first line is an `EngineStart` as
JSON, and the end of the stream says that the API process is gone, however it went. Then this
process ends at once, whatever it is doing.

Exit codes: 0 after a Shutdown message; 1 when the engine could not start (a Failed message told
why); 2 when it crashed (its traceback is on standard error); 3 when its parent died.
"""

import gc
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

import msgspec
import zmq

from replica.config import ReplicaConfig
from replica.core.block_pool import BlockPool
from replica.core.evictions import EVICTIONS
from replica.core.limits import SchedulerLimits
from replica.core.scheduler import Scheduler
from replica.engine.loop import EngineLoop, Runner
from replica.engine.messages import Failed, FromEngine, Loading, encode
from replica.engine.publisher import EventPublisher, LoadPublisher
from replica.engine.step_log import StepLog

EXIT_COULD_NOT_START = 1
EXIT_CRASHED = 2
EXIT_PARENT_DIED = 3

STDIN = 0

Progress = Callable[[float], None]
BuildRunner = Callable[[ReplicaConfig, Progress], Runner]
"""Loads the model; calls its second argument with the fraction done, in [0, 1]. Raises OSError or
ValueError, with a line for the operator, when the model or the device is not as configured."""

# Answers queued for the API process before the engine waits for it to read.
_ANSWERS_HIGH_WATER_MARK = 100_000


class EngineStart(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process is told at its birth.

    Attributes:
        requests: ZMQ address to PULL messages from.
        answers: ZMQ address to PUSH messages to.
        epoch: Names this life of the engine.
    """

    config: ReplicaConfig
    requests: str
    answers: str
    epoch: str


def main(build_runner: BuildRunner) -> int:
    """The whole life of an engine process; returns its exit code."""
    # A stop signal often reaches every process of a group; when the engine stops is the API
    # process's decision, after the answers in flight.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="engine: %(levelname)s %(message)s"
    )
    start = msgspec.json.decode(read_line(STDIN), type=EngineStart)
    threading.Thread(target=end_with_parent, name="parent-watch", daemon=True).start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        return run_engine(start, context, build_runner)
    except Exception:  # noqa: BLE001 (the process's outermost edge)
        traceback.print_exc()
        return EXIT_CRASHED
    finally:
        context.destroy(linger=1000)


def run_engine(
    start: EngineStart, context: zmq.Context[zmq.Socket[bytes]], build_runner: BuildRunner
) -> int:
    """Connects, loads and loops until told to stop; also what tests run in a thread."""
    requests = context.socket(zmq.PULL)
    requests.connect(start.requests)
    answers = context.socket(zmq.PUSH)
    answers.set(zmq.SNDHWM, _ANSWERS_HIGH_WATER_MARK)
    answers.connect(start.answers)

    def send(message: FromEngine) -> None:
        answers.send(encode(message))

    events: EventPublisher | None = None
    loads: LoadPublisher | None = None
    steps: StepLog | None = None
    try:
        try:
            # Addresses and files first: a port in use is known before minutes are spent on loading.
            events = EventPublisher(context, start.config.kv_events)
            if start.config.load_reports is not None:
                loads = LoadPublisher(context, start.config.load_reports)
            if start.config.engine.step_log is not None:
                steps = StepLog(start.config.engine.step_log)
            send(Loading(fraction=0.0))
            runner = build_runner(start.config, lambda fraction: send(Loading(fraction=fraction)))
        except (OSError, ValueError) as error:
            send(Failed(line=one_line(error)))
            return EXIT_COULD_NOT_START
        except Exception as error:  # noqa: BLE001 (the process's outermost edge)
            traceback.print_exc()
            send(Failed(line=f"loading failed: {type(error).__name__}: {one_line(error)}"))
            return EXIT_COULD_NOT_START
        EngineLoop(
            scheduler=build_scheduler(start.config, runner.num_blocks),
            runner=runner,
            requests=requests,
            answers=answers,
            events=events,
            loads=loads,
            steps=steps,
            epoch=start.epoch,
        ).run()
        return 0
    finally:
        if events is not None:
            events.close()
        if loads is not None:
            loads.close()
        if steps is not None:
            steps.close()
        requests.close(linger=0)
        answers.close(linger=1000)


def build_scheduler(config: ReplicaConfig, num_blocks: int) -> Scheduler:
    engine = config.engine
    limits = SchedulerLimits(
        max_batched_tokens=engine.max_batched_tokens,
        max_running_sequences=engine.max_running_sequences,
        max_waiting_sequences=engine.max_waiting_sequences,
        max_model_len=config.model.max_model_len,
        prefix_cache=engine.prefix_cache,
    )
    eviction = EVICTIONS[engine.eviction](num_blocks)
    return Scheduler(
        limits=limits,
        pool=BlockPool(num_blocks, engine.block_size, eviction),
        queue_order=engine.queue_order,
    )


def spare_collector() -> None:
    """What is there, weights and modules, stays, and the garbage collector need not look at it.

    Looking through it again and again took a host's step of 64 sequences from 0.5 to 1.4 ms.
    """
    gc.collect()
    gc.freeze()


def read_line(descriptor: int) -> bytes:
    """The first line, or what there is of it at the stream's end."""
    # Not sys.stdin: a thread that waits in its buffer's lock makes the interpreter's end fatal.
    line = b""
    while not line.endswith(b"\n") and (more := os.read(descriptor, 1 << 16)):
        line += more
    return line


def end_with_parent() -> None:
    """Ends this process when its standard input does; runs in a thread of its own."""
    while os.read(STDIN, 4096):
        pass
    os._exit(EXIT_PARENT_DIED)  # the main thread may be anywhere, loading or computing


def one_line(error: BaseException) -> str:
    """What it says, without line breaks; its name if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
