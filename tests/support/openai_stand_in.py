"""OpenAI-compatible servers as there are many: each reports its cache its own way, or not at all.

A stand-in keeps a true LRU cache over its prompts and answers chats, streamed or whole. What its
usage says of the cache is its `Report`.
"""

from enum import Enum

import msgspec

from protocol.sse import DONE
from tests.support.data_plane import Call
from tests.support.lru_cache import LruCache

ANSWER = "Indeed it is."


class Report(Enum):
    """What the usage of an answer looks like."""

    HITS_AND_ZEROS = "cached_tokens, 0 for a miss"
    HITS_ONLY = "cached_tokens, null details for a miss"
    NULL_DETAILS = "prompt_tokens_details: null"
    NO_DETAILS = "no prompt_tokens_details"
    ALWAYS_ZERO = "cached_tokens: 0"
    NULL_USAGE = "usage: null"
    NO_USAGE = "no usage"


class StandIn:
    """A script for a `ScriptedReplica`."""

    def __init__(self, report: Report, cache_tokens: int = 100_000) -> None:
        self.cache = LruCache(cache_tokens)
        self.report = report
        self.cached_tokens: list[int] = []  # what was true of each chat
        self.breaks = False  # in the middle of the next answers

    async def __call__(self, call: Call) -> None:
        request = msgspec.json.decode(call.body)
        prompt = msgspec.json.encode(request["messages"])
        tokens, cached = self.cache.serve(prompt)
        self.cached_tokens.append(cached)
        usage = self._usage(tokens, cached)
        if request.get("stream"):
            await self._stream(call, usage)
        elif self.breaks:
            call.reset()
        else:
            message = {"role": "assistant", "content": ANSWER}
            body = {"choices": [{"index": 0, "message": message}], **usage}
            await call.json(msgspec.json.encode(body))

    async def _stream(self, call: Call, usage: dict[str, object]) -> None:
        await call.start_stream()
        for word in ANSWER.split():
            delta = {"choices": [{"index": 0, "delta": {"content": word}}]}
            await call.event(msgspec.json.encode(delta))
            if self.breaks:
                call.reset()
                return
        if usage:
            await call.event(msgspec.json.encode({"choices": [], **usage}))
        await call.event(DONE.removeprefix(b"data: ").strip())
        await call.end_stream()

    def _usage(self, tokens: int, cached: int) -> dict[str, object]:
        if self.report is Report.NO_USAGE:
            return {}
        if self.report is Report.NULL_USAGE:
            return {"usage": None}
        usage: dict[str, object] = {"prompt_tokens": tokens, "completion_tokens": 4}
        if self.report is Report.ALWAYS_ZERO:
            usage["prompt_tokens_details"] = {"cached_tokens": 0}
        elif self.report is Report.NULL_DETAILS:
            usage["prompt_tokens_details"] = None
        elif self.report is Report.HITS_AND_ZEROS or (self.report is Report.HITS_ONLY and cached):
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        elif self.report is Report.HITS_ONLY:
            usage["prompt_tokens_details"] = None
        return {"usage": usage}
