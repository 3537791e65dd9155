"""Recorded traffic replayed through real sockets: the router knows what its publisher holds.

A router process stands in front of two replicas in the test process: "holder" publishes a
recording, "other" publishes nothing. What must be matched is told by the recording's token ids;
the router goes by text.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtests.stack import free_ports
from prompt.assets import load_prompt_assets, resolve_model_path
from prompt.vocabulary import Vocabulary
from protocol.kv_events import (
    AllBlocksCleared,
    EventBatch,
    encode_batch,
    encode_sequence_number,
)
from router.core.kv_index import KvIndex
from router.core.prefix_tree import PrefixTree
from tests.support.recorded_replica import RecordedReplica, recorded_replica
from tests.support.recorded_traffic import HeldBlocks, Question, Recording, read_recording
from tests.support.stack import MODEL_PATH, Process

pytestmark = pytest.mark.processes

GOLDEN = Path(__file__).parents[1] / "golden"
CAPTURES = Path(__file__).parents[3] / "shared" / "captures"
TIMEOUT_S = 60.0
POLL_S = 0.02
# Equal, so that predictions end in the order they were made.
PREDICTION = {"ttl_s": 0.05, "grace_s": 0.05}
# A batch replayed long after it was recorded seems late, so its sender is trusted less for a while.
TRUSTED = 0.9
HOLDER, OTHER = "holder", "other"

RECORDINGS = [
    pytest.param(
        GOLDEN / "recorded-requests.json", GOLDEN / "recorded-kv-events.jsonl", 80, id="warmroute"
    ),
    pytest.param(
        CAPTURES / "vllm-0.32.0-requests.json",
        CAPTURES / "vllm-0.32.0-kv-events.jsonl",
        96,
        id="vllm",
        marks=pytest.mark.skipif(not CAPTURES.exists(), reason="no traffic of vLLM here"),
    ),
]


@cache
def vocabulary() -> Vocabulary:
    """Read once: it takes seconds."""
    return load_prompt_assets(resolve_model_path(MODEL_PATH)).vocabulary


class RouterProcess:
    """A router, what it knows, and what it should."""

    def __init__(self, process: Process, http: httpx.AsyncClient, admin_url: str) -> None:
        self.truth = HeldBlocks()
        self._process = process
        self._http = http
        self._admin_url = admin_url
        self._tree = PrefixTree()  # of the same shape as the router's, but for predictions
        self._index = KvIndex(self._tree, vocabulary())

    async def model(self) -> dict[str, Any]:
        answer = await self._http.get(f"{self._admin_url}/admin/replicas")
        model: dict[str, Any] = answer.json()["models"][0]
        return model

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> None:
        """Until `holds` of what the admin port says, which can only be asked."""
        model = None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    assert self._process.running, self._process.output()
                    try:
                        model = await self.model()
                    except httpx.TransportError:
                        pass  # it does not listen yet
                    else:
                        if holds(model):
                            return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"{model}\n{self._process.output()[-3000:]}") from None

    async def told(self, batches: list[EventBatch], last_seq: int) -> None:
        """Until it has applied `batches`, which end with `last_seq`, and nothing else."""
        self.truth.apply(batches)
        for batch in batches:
            self._index.apply(HOLDER, batch.events)
        while self._tree.sweep(1000):
            pass

        def knows(model: dict[str, Any]) -> bool:
            holder, other = model["replicas"]
            ready = holder["state"] == other["state"] == "ready"
            synced = holder["events"]["synced"] and other["events"]["synced"]
            trusted = holder["trust"] >= TRUSTED
            last = holder["events"]["seq"] == last_seq
            return ready and synced and trusted and last and self._is_settled(model)

        await self.until(knows)
        model = await self.model()
        assert model["replicas"][0]["events"]["malformed"] == {}
        assert model["replicas"][0]["events"]["gaps"] == 0
        assert model["events_skipped"] == {}

    def _is_settled(self, model: dict[str, Any]) -> bool:
        """Whether the tree holds what the events told, and no prediction."""
        tree = model["tree"]
        size = (self._tree.nodes, self._tree.bytes_stored)
        return bool((tree["nodes"], tree["bytes"]) == size)

    async def matched(self, question: Question, **changes: Any) -> tuple[str, int]:
        """(who answered, tokens of it that the holder is said to hold)."""
        body = {**question.body, **changes}
        answer = await self._http.post(question.path, json=body)
        assert answer.status_code == 200, answer.text
        decision = (await self.model())["last_decision"]
        assert decision["replica"] == answer.headers["x-warmroute-replica"]
        matched = {term["replica"]: term["matched_tokens"] for term in decision["terms"]}
        assert matched[OTHER] == 0
        assert decision["matched_tokens"] == matched[decision["replica"]]
        await self._forget_predictions(body["model"])
        return decision["replica"], matched[HOLDER]

    async def _forget_predictions(self, model: str) -> None:
        """Until what was predicted for requests so far is over.

        A prediction may end where a node of the tree ends, and not be seen in its size. One in a
        namespace of its own is, and ends after all before it.
        """
        last = {"model": model, "prompt": "nobody asks this", "cache_salt": "nobody's"}
        answer = await self._http.post("/v1/completions", json=last)
        assert answer.status_code == 200, answer.text
        await self.until(self._is_settled)


@asynccontextmanager
async def router_before(
    holder: RecordedReplica, other: RecordedReplica, model: str, directory: Path
) -> AsyncIterator[RouterProcess]:
    port, admin_port = free_ports(2)
    replicas = [
        {
            "id": replica_id,
            "url": f"http://127.0.0.1:{replica.http_port}",
            "kv_events": replica.event_endpoints,
        }
        for replica_id, replica in [(HOLDER, holder), (OTHER, other)]
    ]
    config = {
        "listen": {"host": "127.0.0.1", "port": port},
        "admin": {"host": "127.0.0.1", "port": admin_port},
        "probe": {"interval_s": 0.1},
        "prediction": PREDICTION,
        "models": [
            {
                "name": model,
                "tokenizer": MODEL_PATH,
                "policy": {"kind": "prefix_aware"},
                "replicas": replicas,
            }
        ],
    }
    path = directory / "router.yaml"
    path.write_text(yaml.safe_dump(config))
    process = Process(directory / "router.log", "router", "-c", str(path))
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, trust_env=False) as http:
            yield RouterProcess(process, http, f"http://127.0.0.1:{admin_port}")
    finally:
        await asyncio.to_thread(process.stop)


async def all_matches_are_true(router: RouterProcess, recording: Recording) -> list[int]:
    """Asks every recorded question; the tokens of each that the holder holds."""
    expected = []
    for question in recording.questions:
        truth = router.truth.matched_tokens(question.token_ids, question.salt)
        replica, matched = await router.matched(question)
        assert matched == truth, question.body
        if truth:
            assert replica == HOLDER, question.body
        expected.append(truth)
    return expected


@pytest.mark.parametrize(("requests", "events", "salted_tokens"), RECORDINGS)
async def test_what_was_recorded_is_matched_until_it_is_cleared(
    requests: Path, events: Path, salted_tokens: int, tmp_path: Path
) -> None:
    recording = read_recording(requests, events)
    (salted,) = [one for one in recording.questions if one.salt is not None]
    messages, batches = recording.messages, recording.batches
    reset = recording.batches_before_reset
    half = reset // 2
    async with recorded_replica(recording.questions) as holder, recorded_replica([]) as other:
        await holder.publish_recorded(messages[:half])  # nobody listens yet
        model = salted.body["model"]
        async with router_before(holder, other, model, tmp_path) as router:
            await holder.subscribed()
            await router.told(batches[:half], half - 1)
            assert holder.replays_asked == [0]

            await holder.publish_recorded(messages[half:reset])
            await router.told(batches[half:reset], reset - 1)
            assert all(await all_matches_are_true(router, recording)), "all prompts are held"
            assert await router.matched(salted) == (HOLDER, salted_tokens)
            for salt in (None, "tenant-b"):
                assert (await router.matched(salted, cache_salt=salt))[1] == 0

            await holder.publish_recorded(messages[reset:])
            await router.told(batches[reset:], len(messages) - 1)
            after_reset = await all_matches_are_true(router, recording)
            assert 0 in after_reset, "the reset is seen"
            assert max(after_reset) > 0, "and so is what came after"

            cleared = EventBatch(ts=batches[-1].ts, events=[AllBlocksCleared()])
            frames = [b"", encode_sequence_number(len(messages)), encode_batch(cleared)]
            await holder.publish_recorded([frames])
            await router.told([cleared], len(messages))
            assert not any(await all_matches_are_true(router, recording))
            assert (await router.model())["tree"]["bytes"] == 0
