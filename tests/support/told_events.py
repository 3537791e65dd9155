"""A replica's streamed answer as a router that resumes reads it: each event with its tokens."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from protocol import sse
from protocol.resume import RESUMABLE_FIELD, RESUME_KEY, told_tokens
from tests.support.fake_engine import TIMEOUT_S, ApiHarness

RESUMABLE = {RESUMABLE_FIELD.decode(): "1"}


@dataclass(frozen=True, kw_only=True)
class Told:
    """One event."""

    token_ids: list[int]
    data: Any

    @property
    def text(self) -> str:
        return "".join(
            choice["text"] if "text" in choice else choice["delta"].get("content", "")
            for choice in self.data["choices"]
        )

    @property
    def finish(self) -> str | None:
        return self.data["choices"][0]["finish_reason"] if self.data["choices"] else None


async def raw_stream(
    api: ApiHarness, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> bytes:
    body = {**body, "stream": True}
    async with (
        asyncio.timeout(TIMEOUT_S),
        api.session.post(api.url + path, json=body, headers=headers) as response,
    ):
        raw = await response.read()
        assert response.status == 200, raw
    return raw


async def told_stream(api: ApiHarness, path: str, body: dict[str, Any]) -> list[Told]:
    """The events of an answer up to [DONE], which must be there."""
    *events, done, rest = (await raw_stream(api, path, body, RESUMABLE)).split(b"\n\n")
    assert (done + b"\n\n", rest) == (sse.DONE, b"")
    told = []
    for event in events:
        lines = event.split(b"\n")
        assert lines[-1].startswith(b"data: ")
        assert [line[:9] for line in lines[:-1]] in ([], [b": tokens "])
        data = msgspec.json.decode(lines[-1].removeprefix(b"data: "))
        told.append(Told(token_ids=told_tokens(event), data=data))
    return told


def resumed(body: dict[str, Any], before: list[Told]) -> dict[str, Any]:
    """The body that has the answer go on after these events."""
    said = [token_id for event in before for token_id in event.token_ids]
    id_and_time = {"id": before[0].data["id"], "created": before[0].data["created"]}
    return {**body, RESUME_KEY: {"token_ids": said, **id_and_time}}
