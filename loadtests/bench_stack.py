"""What a user gets from a stack: TTFT cold and warm, tokens/s at 1 and 16 concurrent requests.

`make bench-stack` runs it against a running stack, or starts configs/local.yaml for the time.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from cli.terminal import table
from loadtests.stack import StackFailed, answers, child_stack, up_command

LOG = Path(".run/bench_stack.log")
TIMEOUT_S = 300.0


async def first_token_s(http: httpx.AsyncClient, model: str, tokens: list[int]) -> float:
    """Seconds from sending a prompt of token ids to the first event of the stream."""
    body = {"model": model, "prompt": tokens, "max_tokens": 1, "stream": True, "temperature": 0}
    sent_s = time.perf_counter()
    async with http.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for _ in response.aiter_raw():
            return time.perf_counter() - sent_s
    raise StackFailed("a stream without an event")


async def ttft(
    http: httpx.AsyncClient, model: str, prompt_tokens: int, samples: int, seed: int
) -> list[dict[str, Any]]:
    """Each prompt is unlike the others from its first token on; the second time it is warm."""
    cold_s, warm_s = [], []
    for sample in range(samples):
        first = 1000 + (seed * samples + sample) % 20_000
        tokens = [
            first,
            *(1000 + (first + index * 7919) % 40_000 for index in range(1, prompt_tokens)),
        ]
        cold_s.append(await first_token_s(http, model, tokens))
        await asyncio.sleep(0.5)  # the replica's events reach the router
        warm_s.append(await first_token_s(http, model, tokens))
    return [
        {"what": f"TTFT {name}, {prompt_tokens} tokens", "unit": "ms", **_spread_ms(values)}
        for name, values in (("cold", cold_s), ("warm", warm_s))
    ]


async def tokens_per_s(
    http: httpx.AsyncClient, model: str, concurrent: int, output_tokens: int, rounds: int
) -> dict[str, Any]:
    """Generated tokens a second over all of `concurrent` equal requests, started together."""
    rates = []
    for round_number in range(rounds):
        bodies = [
            {
                "model": model,
                "prompt": f"{round_number}.{index}: It was a dark night and",
                "max_tokens": output_tokens,
                "ignore_eos": True,
                "temperature": 0,
            }
            for index in range(concurrent)
        ]
        started_s = time.perf_counter()
        responses = await asyncio.gather(
            *(http.post("/v1/completions", json=body) for body in bodies)
        )
        elapsed_s = time.perf_counter() - started_s
        generated = 0
        for response in responses:
            response.raise_for_status()
            generated += response.json()["usage"]["completion_tokens"]
        rates.append(generated / elapsed_s)
    return {
        "what": f"output, {concurrent} concurrent",
        "unit": "tokens/s",
        **_spread([round(rate, 1) for rate in rates]),
    }


async def measure(url: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(
        base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False
    ) as http:
        models = (await http.get("/v1/models")).raise_for_status().json()
        model = models["data"][0]["id"]
        await tokens_per_s(http, model, 2, 4, 1)  # warm-up
        rows = await ttft(http, model, options.prompt_tokens, options.samples, options.seed)
        for concurrent in (1, 16):
            rows.append(await tokens_per_s(http, model, concurrent, 64, options.rounds))
        return rows


def _spread_ms(values_s: Sequence[float]) -> dict[str, Any]:
    return _spread([round(value * 1000, 1) for value in values_s])


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"min": min(values), "median": round(statistics.median(values), 1), "max": max(values)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--start", type=Path, help="what to start when nothing answers at --url")
    parser.add_argument("--prompt-tokens", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="which prompts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        with ExitStack() as stack:
            if options.start is not None and not answers(options.url):
                command = up_command(options.start)
                stack.enter_context(child_stack(command, options.url, LOG, lambda _: None))
            rows = asyncio.run(measure(options.url, options))
    except (StackFailed, httpx.HTTPError) as error:
        print(f"bench_stack: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(rows))
    else:
        print("\n".join(table(list(rows[0]), [[str(v) for v in row.values()] for row in rows])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
