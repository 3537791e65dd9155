"""`warmroute`: parses the command line and hands over. Exit codes: 0 fine, 1 failed, 2 misused."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from cli.config_file import ConfigError, load_any, load_replica, load_router, load_up


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    if getattr(options, "stop_with_stdin", False):
        _stop_when_stdin_closes()
    try:
        code: int = options.run(options)
    except ConfigError as error:
        print(f"warmroute: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return code


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="warmroute", description="An LLM router that knows every replica's KV cache."
    )
    parser.add_argument("--version", action="version", version=f"warmroute {version('warmroute')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="router and replicas as child processes of one terminal")
    _add_config(up)
    _add_stop_with_stdin(up)
    up.set_defaults(run=_up)

    router = commands.add_parser("router", help="the router")
    _add_config(router)
    _add_child(router)
    router.set_defaults(run=_router)

    replica = commands.add_parser("replica", help="one replica")
    _add_config(replica)
    replica.add_argument("--id", help="which replica of a file that holds several")
    _add_child(replica)
    replica.set_defaults(run=_replica)

    chat = commands.add_parser("chat", help="talk to it; each answer shows replica and cache use")
    from cli.chat import add_arguments

    add_arguments(chat)
    chat.set_defaults(run=_chat)

    simulate = commands.add_parser(
        "simulate", help="routing policies against each other, in virtual time"
    )
    from cli import simulate as simulation

    simulation.add_arguments(simulate)
    simulate.set_defaults(run=simulation.run)

    replay = commands.add_parser(
        "replay", help="a trace or a workload against a real server: TTFT, goodput, hit tokens"
    )
    from cli import replay as replaying

    replaying.add_arguments(replay)
    replay.set_defaults(run=replaying.run)

    check = commands.add_parser("check", help="validate configuration files")
    check.add_argument("-c", "--config", type=Path, nargs="+", required=True, metavar="FILE")
    check.set_defaults(run=_check)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE")


def _add_child(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"]
    )
    _add_stop_with_stdin(parser)


def _add_stop_with_stdin(parser: argparse.ArgumentParser) -> None:
    """For whoever starts us as a child: we end when it does, however it ended."""
    parser.add_argument("--stop-with-stdin", action="store_true", help=argparse.SUPPRESS)


# Each command imports what it needs when it runs: the router must start without torch.


def _up(options: argparse.Namespace) -> int:
    from cli.up import run

    return run(options.config, load_up(options.config))


def _router(options: argparse.Namespace) -> int:
    config = load_router(options.config)
    _log_to_stderr(options.log_level)
    if config.listen.workers > 1:
        from router.supervisor import run_workers

        return run_workers(config, options.log_level)
    from router.app import run

    return run(config)


def _replica(options: argparse.Namespace) -> int:
    config = load_replica(options.config, options.id)
    _log_to_stderr(options.log_level)
    try:
        from replica.app import run
    except ModuleNotFoundError as error:
        print(
            f"warmroute: {error.name} is not installed; a replica needs: "
            "pip install 'warmroute[replica]'",
            file=sys.stderr,
        )
        return 1
    return run(config)


def _chat(options: argparse.Namespace) -> int:
    from cli.chat import run

    return run(options)


def _check(options: argparse.Namespace) -> int:
    """Every file is read, so that all errors are seen at once."""
    code = 0
    for path in options.config:
        try:
            kind = type(load_any(path)).__name__.removesuffix("Config").lower()
        except ConfigError as error:
            print(f"warmroute: {error}", file=sys.stderr)
            code = 2
        else:
            print(f"{path}: a valid {kind} configuration")
    return code


def _log_to_stderr(level: str) -> None:
    # Looked up for each record, and not in our format.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _stop_when_stdin_closes() -> None:
    def wait() -> None:
        # Not sys.stdin: its lock, held by this thread, would be an error at interpreter exit.
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="stop-with-stdin", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
