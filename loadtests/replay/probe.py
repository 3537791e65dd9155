"""Asks the target, before the load, how many tokens it makes of a text, and how many it takes."""

from collections.abc import Callable
from typing import TypeVar

import httpx
import msgspec

from loadtests.replay.plan import CHAT, prompt_fields
from loadtests.replay.prompts import (
    UNCALIBRATED,
    Calibration,
    calibration_of,
    probe_text,
)

T = TypeVar("T")

_TIMEOUT_S = 30.0
_FEW_WORDS = 64
_MANY_WORDS = 320


class _Tokenized(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    max_model_len: int | None = None


class _Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    usage: _Usage


def calibrate(
    client: httpx.Client, path: str, model: str, seed: int
) -> tuple[Calibration, int | None]:
    """How the target counts, and how many tokens its context holds if it says so.

    `/tokenize` is asked (vLLM, SGLang and our replica have it); where that is not understood, two
    short prompts are sent and their usage read. A target that tells neither is taken at one token
    a word.
    """
    context: list[int] = []

    def by_tokenize(text: str) -> int | None:
        extra = {"add_generation_prompt": True} if path == CHAT else {"add_special_tokens": True}
        body = {"model": model, **prompt_fields(path, text), **extra}
        told = _told(client, "/tokenize", body, _Tokenized)
        if told is not None and told.max_model_len:
            context.append(told.max_model_len)
        return None if told is None else told.count

    def by_usage(text: str) -> int | None:
        body = {"model": model, **prompt_fields(path, text), "max_tokens": 1, "temperature": 0}
        told = _told(client, path, body, _Answer)
        return None if told is None else told.usage.prompt_tokens

    for ask, source in ((by_tokenize, "/tokenize"), (by_usage, "the usage of two short prompts")):
        if (found := _calibration(ask, source, seed)) is not None:
            return found, min(context, default=None)
    return UNCALIBRATED, min(context, default=None)


def _calibration(ask: Callable[[str], int | None], source: str, seed: int) -> Calibration | None:
    few = ask(probe_text(_FEW_WORDS, seed))
    many = None if few is None else ask(probe_text(_MANY_WORDS, seed))
    if few is None or many is None:
        return None
    return calibration_of((_FEW_WORDS, few), (_MANY_WORDS, many), source)


def _told(client: httpx.Client, path: str, body: object, kind: type[T]) -> T | None:
    """None: no answer, or none of this kind; the next way of asking is tried."""
    try:
        response = client.post(path, json=body, timeout=_TIMEOUT_S)
    except httpx.HTTPError:
        return None
    if response.status_code != 200:
        return None
    try:
        return msgspec.json.decode(response.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
