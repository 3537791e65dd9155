"""`warmroute replay`: a trace or a workload against a real server, and what its users would see."""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cli.answer import AnswerError
from cli.chat import API_KEY_VARIABLE, DEFAULT_URL
from cli.client import first_model, open_client, root_url
from cli.requests import add_request_arguments, check_at_least_1, flag, requests_of

if TYPE_CHECKING:
    from loadtests.replay.outcome import Outcome
    from loadtests.replay.prompts import Calibration
    from loadtests.replay.run import Load, Replayed

OPENAI_KEY_VARIABLE = "OPENAI_API_KEY"

DESCRIPTION = """\
Sends a trace's requests to any server that speaks OpenAI's API, and reports what came back.

Without --concurrency requests go when the trace has them, whatever the server does (open loop).
With it, at most N are in flight and timestamps are ignored (closed loop). With --speedup as well,
they go when they are due, at most N at once, and what waits its turn is timed from when it was
due. Prompts are English words, as many tokens as the trace says and equal where it is equal;
another --seed takes other words, so that what the last run left in caches is not found. In
multi-turn workloads what a model answered is not what the next prompt holds.
"""
EPILOGUE = """\
exit status: 0 done, 1 every request failed, 2 the arguments make no sense, 130 interrupted (the
report says what was done)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOGUE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_request_arguments(parser)
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument("--model", help="default: the first one the server lists")
    parser.add_argument(
        "--api-key",
        help=f"sent as a bearer token (default: ${API_KEY_VARIABLE}, else ${OPENAI_KEY_VARIABLE})",
    )
    parser.add_argument(
        "--endpoint",
        choices=["chat", "completions"],
        default="chat",
        help="/v1/chat/completions (default) or /v1/completions",
    )
    parser.add_argument("--concurrency", type=int, metavar="N", help="at most so many at once")
    parser.add_argument(
        "--scale-tokens",
        type=float,
        default=1.0,
        metavar="F",
        help="prompts and answers so many times as long, at most 1: 0.1 makes 6,000 tokens 600",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="no longer answers")
    parser.add_argument(
        "--ignore-eos",
        action="store_true",
        help="answers as long as the trace's (vLLM, SGLang, our replica)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="from sending a request to the end of its answer (default: %(default)g)",
    )
    parser.add_argument(
        "--slo-ttft",
        type=float,
        default=2.0,
        metavar="S",
        help="goodput: first token within S seconds (default: %(default)g)",
    )
    parser.add_argument("--slo-tpot", type=float, metavar="S", help="and S a token after it")
    parser.add_argument("--slo-e2e", type=float, metavar="S", help="and all within S seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of a table")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a line of JSON for each request as it ends"
    )


def run(options: argparse.Namespace) -> int:
    """See EPILOGUE."""
    try:
        return _run(options)
    except (OSError, ValueError) as error:
        print(f"warmroute: {error}", file=sys.stderr)
        return 2
    except AnswerError as error:
        print(f"warmroute: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    """
    Raises:
        ValueError, OSError: The trace or an argument makes no sense.
        AnswerError: Nobody answers, or lists no model.
    """
    import uvloop

    from loadtests.replay.outcome import Objective
    from loadtests.replay.run import replay
    from loadtests.replay.summary import as_json, lines, summarize
    from router.start import allow_many_connections

    load, calibration = _load(options)
    allow_many_connections()

    told = _progress(load.extent.requests) if sys.stderr.isatty() else None
    with options.out.open("wb") if options.out else nullcontext() as out:

        def ended(outcome: "Outcome") -> None:
            if out is not None:
                out.write(outcome.line() + b"\n")

        replayed = uvloop.run(replay(load, ended=ended, told=told))
    if told is not None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    objective = Objective(ttft_s=options.slo_ttft, tpot_s=options.slo_tpot, e2e_s=options.slo_e2e)
    outcomes = sorted(replayed.outcomes, key=lambda outcome: outcome.number)
    summary = summarize(
        outcomes, objective, lags_s=replayed.lags_s, in_flight_max=replayed.in_flight_max
    )
    if options.json:
        print(json.dumps({**_what(options, load, calibration, replayed), **as_json(summary)}))
    else:
        print(*lines(summary, objective, calibration, outcomes), sep="\n")
    if replayed.interrupted:
        return 130
    return 0 if summary.answered else 1


def _load(options: argparse.Namespace) -> tuple["Load", "Calibration"]:
    """
    Raises:
        ValueError, OSError, AnswerError: As `_run`.
    """
    from loadtests.replay.plan import CHAT, COMPLETIONS, Lengths, Planner, extent_of
    from loadtests.replay.probe import calibrate
    from loadtests.replay.prompts import PromptWriter
    from loadtests.replay.run import Load

    _check(options)
    requests = requests_of(options)
    path = CHAT if options.endpoint == "chat" else COMPLETIONS
    lengths = Lengths(scale=options.scale_tokens, max_tokens=options.max_tokens)
    extent = extent_of(requests(), lengths)  # what is wrong is told before anything is sent
    if extent.requests == 0:
        raise ValueError(f"{options.trace}: no requests")
    api_key = options.api_key or _key_from_environment()
    try:
        client = open_client(options.url, api_key)
    except AnswerError as error:
        raise ValueError(f"--url: {error}") from error
    with client:
        model = options.model or first_model(client)
        calibration, context = calibrate(client, path, model, options.seed)
        url = root_url(client)
    if context is not None and extent.tokens_max > context:
        fits = options.scale_tokens * context / extent.tokens_max
        print(
            f"warmroute: the longest request has {extent.tokens_max:,} tokens, the server's "
            f"context holds {context:,}; --scale-tokens {fits * 0.95:.2g} makes all fit",
            file=sys.stderr,
        )
    planner = Planner(
        model=model,
        path=path,
        lengths=lengths,
        writer=PromptWriter(calibration, scale=options.scale_tokens, seed=options.seed),
        ignore_eos=options.ignore_eos,
    )
    load = Load(
        requests=requests,
        extent=extent,
        planner=planner,
        url=url,
        api_key=api_key,
        on_schedule=options.concurrency is None or options.speedup is not None,
        concurrency=options.concurrency,
        timeout_s=options.timeout,
    )
    return load, calibration


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError for what no trace or workload would refuse."""
    check_at_least_1(options, "requests", "concurrency", "max_tokens")
    for name in ("timeout", "speedup", "slo_ttft", "slo_tpot", "slo_e2e"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{flag(name)}: expected a number above 0, got {value}")
    if not 0 < options.scale_tokens <= 1:
        raise ValueError(
            f"--scale-tokens: expected above 0 and at most 1, got {options.scale_tokens}"
        )


def _key_from_environment() -> str | None:
    return os.environ.get(API_KEY_VARIABLE) or os.environ.get(OPENAI_KEY_VARIABLE)


def _what(
    options: argparse.Namespace, load: "Load", calibration: "Calibration", replayed: "Replayed"
) -> dict[str, object]:
    """What was done, so that a file of numbers explains itself."""
    return {
        "trace": options.trace,
        "url": load.url,
        "model": load.planner.model,
        "endpoint": load.planner.path,
        "speedup": options.speedup if load.on_schedule else None,
        "concurrency": options.concurrency,
        "scale_tokens": options.scale_tokens,
        "max_tokens": options.max_tokens,
        "ignore_eos": options.ignore_eos,
        "seed": options.seed,
        "slo_ttft_s": options.slo_ttft,
        "slo_tpot_s": options.slo_tpot,
        "slo_e2e_s": options.slo_e2e,
        "calibration": asdict(calibration),
        "interrupted": replayed.interrupted,
    }


def _progress(requests: int) -> Callable[["Replayed"], None]:
    """A line that is written over: how many are done, and how long it has taken."""

    def tell(replayed: "Replayed") -> None:
        failed = sum(outcome.error is not None for outcome in replayed.outcomes)
        minutes, seconds = divmod(int(replayed.elapsed_s), 60)
        line = (
            f"{len(replayed.outcomes):,} of {requests:,} done, {failed:,} failed, "
            f"{replayed.in_flight:,} in flight, {minutes}:{seconds:02}"
        )
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    return tell
