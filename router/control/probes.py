"""Asks each replica whether it is ready, over and over; tells the fleet what it hears."""

import asyncio
from collections.abc import Callable

import httpx

from router.config import ProbeConfig, ReplicaConfig


async def probe(
    replica: ReplicaConfig,
    config: ProbeConfig,
    http: httpx.AsyncClient,
    on_result: Callable[[str | None], None],
) -> None:
    """Runs until cancelled.

    Args:
        on_result: Told after each probe: None when the replica is ready, else why not.
    """
    url = replica.base_url + config.path
    while True:
        on_result(await _probe_once(url, config.timeout_s, http))
        await asyncio.sleep(config.interval_s)


async def _probe_once(url: str, timeout_s: float, http: httpx.AsyncClient) -> str | None:
    try:
        async with asyncio.timeout(timeout_s):
            response = await http.get(url, timeout=timeout_s)
    except TimeoutError:
        return f"no answer within {timeout_s} s"
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    return None if response.status_code == 200 else f"answered {response.status_code}"
