"""Writes recorded-requests.json and recorded-kv-events.jsonl: real traffic of our own replica.

A four-turn chat, two siblings at once, one chat with a salt, one stream with usage, one plain
completion, `reset_prefix_cache`, and one chat after it: the embedded model answers, and what it
publishes meanwhile is written down as it came.

    requests   a list of {request, status, response, prompt_token_ids}, the ids by its /tokenize
    kv-events  one PUB message a line: {t: seconds since subscribing, frames: in base64}

Run from the repository root: python -m tests.golden.make_recorded_traffic
"""

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import zmq
import zmq.asyncio

from loadtests.stack import free_ports
from protocol.kv_events import decode_sequence_number, decode_snapshot
from replica.config import ReplicaConfig
from tests.support.replica_process import REAL, replica_process
from tests.support.stack import MODEL, MODEL_PATH

TIMEOUT_S = 120.0
BLOCK_SIZE = 16
# Longer than a near-tie: who holds the rules alone is preferred.
RULES = "You keep the light of a lonely house by the sea and answer every ship in few words. " * 8
QUESTIONS = ["Which ships passed?", "Was there fog?", "Is the lamp lit?", "And tomorrow?"]
SIBLINGS = ["How high is the tower?", "Who wrote the log of last year?"]
GREEDY = {"model": MODEL, "temperature": 0}


class Recorder:
    """Asks a replica and keeps what it was asked, what it answered and what it published."""

    def __init__(self, http: httpx.AsyncClient, events: zmq.asyncio.Socket) -> None:
        self.requests: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self._http = http
        self._events = events
        self._subscribed_at = time.monotonic()

    async def ask(self, request: dict[str, Any]) -> str:
        """The answer, as text. When the next request is asked, its events are written down."""
        path = "chat/completions" if "messages" in request else "completions"
        what = "messages" if "messages" in request else "prompt"
        tokenized = await self._http.post("/tokenize", json={what: request[what]})
        answer = await self._http.post(f"/v1/{path}", json=request)
        self.requests.append(
            {
                "request": request,
                "status": answer.status_code,
                "response": answer.text,
                "prompt_token_ids": tokenized.json()["tokens"],
            }
        )
        assert answer.status_code == 200, answer.text
        return answer.text

    async def chat(self, messages: list[dict[str, str]], **options: Any) -> str:
        text = await self.ask({**GREEDY, "messages": messages, **options})
        await self.listen()
        return text

    async def reset(self) -> None:
        answer = await self._http.post("/reset_prefix_cache")
        self.requests.append({"request": "reset_prefix_cache", "status": answer.status_code})
        await self.listen()

    async def listen(self) -> None:
        """Until all it has published is written down."""
        last = decode_snapshot((await self._http.get("/kv_cache/snapshot")).content).seq
        while len(self.messages) <= last:
            frames = await self._events.recv_multipart()
            assert decode_sequence_number(frames[1]) == len(self.messages), "a batch was lost"
            texts = [base64.b64encode(frame).decode() for frame in frames]
            since_s = round(time.monotonic() - self._subscribed_at, 4)
            self.messages.append({"t": since_s, "frames": texts})


async def talk(recorder: Recorder) -> None:
    rules = {"role": "system", "content": RULES}
    conversation = [rules]
    for question in QUESTIONS:
        conversation.append({"role": "user", "content": question})
        answer = json.loads(await recorder.chat(list(conversation), max_tokens=24))
        said = answer["choices"][0]["message"]["content"]
        conversation.append({"role": "assistant", "content": said})
    siblings = [[rules, {"role": "user", "content": question}] for question in SIBLINGS]
    bodies = [{**GREEDY, "messages": messages, "max_tokens": 8} for messages in siblings]
    await asyncio.gather(*map(recorder.ask, bodies))
    await recorder.listen()
    # Each begins with words of its own: not even a default system prompt is shared.
    secret = [{"role": "system", "content": "This tenant keeps a secret from all others. " * 8}]
    await recorder.chat(secret, max_tokens=4, cache_salt="tenant-a")
    poem = [{"role": "system", "content": "Verse upon verse about the tide. " * 8}]
    usage = {"include_usage": True}
    await recorder.chat(poem, max_tokens=12, stream=True, stream_options=usage)
    await recorder.ask({**GREEDY, "prompt": "Der Leuchtturm steht am Meer. " * 8, "max_tokens": 5})
    await recorder.listen()
    await recorder.reset()
    await recorder.chat(conversation[:2], max_tokens=4)


async def record() -> Recorder:
    port, events_port = free_ports(2)
    endpoint = f"tcp://127.0.0.1:{events_port}"
    settings = {
        "id": "recorded",
        "listen": {"port": port},
        "model": {"name": MODEL, "path": MODEL_PATH, "max_model_len": 1024},
        "engine": {"block_size": BLOCK_SIZE, "kv_cache_blocks": 256},
        "kv_events": {"endpoint": endpoint},
    }
    context = zmq.asyncio.Context()
    events = context.socket(zmq.SUB)
    try:
        events.subscribe(b"")
        events.connect(endpoint)
        async with (
            asyncio.timeout(TIMEOUT_S),
            replica_process(msgspec.convert(settings, ReplicaConfig), REAL) as replica,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S, trust_env=False
            ) as http,
        ):
            recorder = Recorder(http, events)
            await replica.line("ready, serving", timeout_s=TIMEOUT_S)
            await talk(recorder)
            return recorder
    finally:
        context.destroy(linger=0)


def main() -> None:
    recorder = asyncio.run(record())
    here = Path(__file__).parent
    (here / "recorded-requests.json").write_text(json.dumps(recorder.requests, indent=1) + "\n")
    lines = [json.dumps(message) + "\n" for message in recorder.messages]
    (here / "recorded-kv-events.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
