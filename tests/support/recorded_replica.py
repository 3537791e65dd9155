"""A replica that answers and publishes what was recorded: HTTP, PUB and replay sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import zmq.asyncio
from aiohttp import web

from protocol.kv_events import decode_sequence_number
from tests.support.event_publisher import EventPublisher
from tests.support.recorded_traffic import Question


class RecordedReplica(EventPublisher):
    """Has no snapshots, like vLLM: what came before is learned by replay."""

    def __init__(self, context: zmq.asyncio.Context, questions: list[Question]) -> None:
        super().__init__(context)
        self._questions = questions

    async def publish_recorded(self, messages: list[list[bytes]]) -> None:
        for topic, number, payload in messages:
            assert topic == self.topic(), "the topic is sent by the publisher"
            self.buffer.append((decode_sequence_number(number), payload))
            await self.send(number, payload)

    @property
    def event_endpoints(self) -> dict[str, str]:
        return {
            "endpoint": f"tcp://127.0.0.1:{self.port}",
            "replay": f"tcp://127.0.0.1:{self.replay_port}",
        }

    async def answer(self, request: web.Request) -> web.Response:
        """The recorded answer, if the request is a recorded one.

        Usage goes with whole answers only: of a stream that takes no time at all, the router would
        learn how fast this replica is.
        """
        body = json.loads(await request.read())
        found = [one.answer for one in self._questions if one.body == body]
        text = found[0] if found and not body.get("stream") else '{"choices": []}'
        return web.Response(text=text, content_type="application/json")


@asynccontextmanager
async def recorded_replica(questions: list[Question]) -> AsyncIterator[RecordedReplica]:
    """One whose sockets answer."""
    context = zmq.asyncio.Context()
    replica = RecordedReplica(context, questions)
    replica.bind()
    app = web.Application(client_max_size=2**20)
    app.router.add_get("/ready", _ready)
    app.router.add_post("/v1/chat/completions", replica.answer)
    app.router.add_post("/v1/completions", replica.answer)
    runner = web.AppRunner(app, access_log=None)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        replica.http_port = runner.addresses[0][1]
        async with asyncio.TaskGroup() as tasks:
            replays = tasks.create_task(replica.serve_replays())
            try:
                yield replica
            finally:
                replays.cancel()
    finally:
        await runner.cleanup()
        replica.close()
        context.destroy(linger=0)


async def _ready(request: web.Request) -> web.Response:
    return web.Response(text="ready")
