"""What the router answers itself, what it refuses, and what it says afterwards."""

import asyncio
import json
from typing import Any

import pytest

from router.core.states import StateEvent
from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica
from tests.support.front import answer, front

TWO_MODELS: dict[str, Any] = {
    "models": [
        {"name": name, "replicas": [{"id": name, "url": "http://127.0.0.1:1"}]}
        for name in ("m", "n")
    ]
}


def error_of(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)["error"]
    return found


async def test_a_request_by_alias_reaches_the_replica_under_the_models_name() -> None:
    replica = ScriptedReplica("a", answer)
    async with front(replica) as router:
        body = b'{"model": "gpt-9", "messages": [], "temperature": 1.50}'
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"):
            response = await router.http.post(path, content=body)
            assert response.status_code == 200
            assert response.headers["x-warmroute-replica"] == "a"
        exact = b'{ "model":"m" , "messages":[] }'
        await router.http.post("/v1/chat/completions", content=exact)
        rewritten = b'{"model":"m","messages":[],"temperature":1.50}'
        assert [call.body for call in replica.calls] == [rewritten] * 4 + [exact]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "message"),
    [
        pytest.param("POST", "/v1/chat/completions", b'{"model":"x"}', 404, "model_not_found",
                     "'x' does not exist; there are: m, default", id="unknown-model"),
        pytest.param("POST", "/v1/chat/completions", b"{", 400, "invalid_request",
                     "not valid JSON", id="invalid-json"),
        pytest.param("POST", "/v1/chat/completions", b'{"stream":1,"x":', 400, "invalid_request",
                     "not valid JSON", id="invalid-after-a-wrong-type"),
        pytest.param("POST", "/v1/completions", b'{"model":"\xff"}', 400, "invalid_request",
                     "not valid JSON", id="not-utf-8"),
        pytest.param("POST", "/v1/completions", b"[" * 50_000, 400, "invalid_request",
                     "not valid JSON", id="nested-without-end"),
        pytest.param("POST", "/v1/chat/completions", b"[1]", 400, "invalid_request",
                     "must be a JSON object", id="not-an-object"),
        pytest.param("POST", "/v1/chat/completions", b'{"model":1}', 400, "invalid_request",
                     "model must be a string", id="model-is-a-number"),
        pytest.param("GET", "/v1/chat/completions", b"", 405, "method_not_allowed",
                     "use POST", id="get-on-chat"),
        pytest.param("POST", "/v1/models", b"", 405, "method_not_allowed",
                     "use GET", id="post-on-models"),
        pytest.param("GET", "/", b"", 404, "path_not_found", "no such path: /", id="root"),
        pytest.param("GET", "/metrics", b"", 404, "path_not_found", "/metrics", id="metrics"),
        pytest.param("GET", "/v1/models/x", b"", 404, "model_not_found", "'x'", id="no-such-card"),
        pytest.param("GET", "/v1/models/", b"", 404, "path_not_found", "", id="card-of-nothing"),
    ],
)  # fmt: skip
async def test_refusals_have_status_code_and_reason(
    method: str, path: str, body: bytes, status: int, code: str, message: str
) -> None:
    replica = ScriptedReplica("a", answer)
    async with front(replica) as router:
        response = await router.http.request(method, path, content=body)
        error = error_of(response.content)
        assert (response.status_code, error["code"]) == (status, code)
        assert message in error["message"]
        assert response.headers["x-request-id"]
        assert not replica.calls
        labels = {"model": "-", "replica": "-", "status": str(status)}
        assert router.count("warmroute_requests_total", **labels) == 1


async def test_fields_of_the_wrong_type_are_for_the_replica_to_judge() -> None:
    replica = ScriptedReplica("a", answer)
    async with front(replica) as router:
        body = b'{"model":"m","messages":"hi","stream":"yes"}'
        assert (await router.http.post("/v1/chat/completions", content=body)).status_code == 200
        assert replica.calls[0].body == body


async def test_without_a_model_the_only_one_is_meant_or_the_field_is_required() -> None:
    async with front(ScriptedReplica("a", answer)) as router:
        assert (await router.chat()).status_code == 200
    async with front(**TWO_MODELS) as router:
        response = await router.chat()
        assert response.status_code == 400
        assert error_of(response.content)["param"] == "model"
        assert "m, n" in error_of(response.content)["message"]


async def test_models_are_listed_and_shown_by_name_alias_and_wildcard() -> None:
    async with front(ScriptedReplica("a", answer)) as router:
        cards = (await router.http.get("/v1/models")).json()["data"]
        assert [(card["id"], card["root"]) for card in cards] == [("m", None), ("default", "m")]
        for name, root in (("m", None), ("default", "m"), ("gpt-4%2Fo", "m")):
            card = (await router.http.get(f"/v1/models/{name}")).json()
            assert (card["id"], card["root"]) == (name.replace("%2F", "/"), root)


async def test_a_request_while_draining_is_sent_elsewhere_and_its_connection_closed() -> None:
    async with front(ScriptedReplica("a", answer)) as router:
        assert (await router.chat(model="m")).headers["connection"] == "keep-alive"
        router.handler.draining = True
        turned_away = await router.chat(model="m")
        assert turned_away.status_code == 503
        assert turned_away.headers["connection"] == "close"
        assert turned_away.headers["retry-after"] == "1"
        assert (await router.http.get("/health")).status_code == 200


async def test_health_and_readiness_follow_the_replicas_and_the_drain() -> None:
    async with front(ScriptedReplica("a", answer), ready=False) as router:
        assert (await router.http.get("/health")).status_code == 200
        response = await router.http.get("/ready")
        assert response.status_code == 503
        assert "no replica of m is ready" in error_of(response.content)["message"]
        assert response.headers["retry-after"] == "1"
        assert (await router.chat()).status_code == 503
    async with front(ScriptedReplica("a", answer)) as router:
        assert (await router.http.get("/ready")).status_code == 200
        router.handler.draining = True
        assert (await router.http.get("/ready")).status_code == 503
        response = await router.chat()
        assert response.status_code == 503
        assert "shutting down" in error_of(response.content)["message"]


async def test_too_many_requests_are_refused_until_one_is_over() -> None:
    going = asyncio.Event()

    async def held(call: Call) -> None:
        await going.wait()
        await answer(call)

    replica = ScriptedReplica("a", held)
    async with front(replica, limits={"max_requests": 1}) as router:
        first = asyncio.create_task(router.chat())
        async with asyncio.timeout(TIMEOUT_S):
            await replica.called.wait()
        refused = await router.chat()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert error_of(refused.content)["type"] == "overloaded_error"
        going.set()
        assert (await first).status_code == 200
        await router.until_idle()
        assert (await router.chat()).status_code == 200


async def test_another_replica_is_tried_while_the_retry_budget_lasts() -> None:
    async def die(call: Call) -> None:
        call.reset()

    broken, well = ScriptedReplica("a", die), ScriptedReplica("b", answer)
    async with front(broken, well) as router:
        assert (await router.chat()).headers["x-warmroute-replica"] == "b"
        await router.until_idle()
        labels = {"model": "m", "outcome": "broken", "replica": "a"}
        assert router.count("warmroute_attempts_total", **labels) == 1


async def test_an_exhausted_retry_budget_ends_with_the_first_failure() -> None:
    async def die(call: Call) -> None:
        call.reset()

    replicas = [ScriptedReplica("a", die), ScriptedReplica("b", answer)]
    async with front(*replicas, retry={"budget_ratio": 0.0, "budget_min_per_s": 0.0}) as router:
        response = await router.chat()
        assert response.status_code == 502
        assert "replica a" in error_of(response.content)["message"]
        assert not replicas[1].calls


async def test_the_log_says_who_where_and_how_much() -> None:
    async with front(ScriptedReplica("a", answer)) as router:
        await router.http.post(
            "/v1/chat/completions", json={"messages": []}, headers={"x-request-id": "mine"}
        )
        await router.until_idle()
        [line] = router.log_lines()
    fields = dict(pair.split("=", 1) for pair in line.split())
    assert float(fields.pop("ttfb_s")) <= float(fields.pop("total_s"))
    assert fields == {
        "request_id": "mine", "target": "/v1/chat/completions", "model": "m", "replica": "a",
        "status": "200", "attempts": "1", "prompt_tokens": "12", "matched_tokens": "0",
        "cached_tokens": "8", "completion_tokens": "3",
    }  # fmt: skip


async def test_a_clients_words_cannot_forge_fields_of_the_log() -> None:
    async with front(ScriptedReplica("a", answer)) as router:
        await router.http.post(
            "/v1/chat/completions",
            json={"model": 'x" status=200'},
            headers={"x-request-id": 'a status=200 "'},
        )
        [line] = router.log_lines()
    assert line.startswith('request_id="a status=200 \\"" target=/v1/chat/completions status=404')
    assert 'error="the model' in line
    assert '\\" status=200' in line


async def test_the_log_can_be_switched_off() -> None:
    async with front(ScriptedReplica("a", answer), log_requests=False) as router:
        await router.chat()
        await router.chat(model="x")
        await router.until_idle()
        assert not router.log_lines()


async def test_answers_are_counted_with_their_tokens() -> None:
    async with front(ScriptedReplica("a", answer)) as router:
        await router.chat()
        await router.until_idle()
        labels = {"model": "m", "replica": "a"}
        assert router.count("warmroute_requests_total", **labels, status="200") == 1
        assert router.count("warmroute_attempts_total", **labels, outcome="answered") == 1
        assert router.count("warmroute_prompt_tokens_total", **labels) == 12
        assert router.count("warmroute_cached_tokens_total", **labels) == 8
        assert router.count("warmroute_match_error_tokens_total", **labels) == 8
        assert router.count("warmroute_completion_tokens_total", **labels) == 3
        assert router.count("warmroute_request_seconds_count", model="m") == 1
        assert router.count("warmroute_time_to_first_byte_seconds_count", model="m") == 1


async def test_where_nobody_listens_at_the_only_ready_replica_a_suspect_one_is_asked() -> None:
    gone, other = ScriptedReplica("r0", answer), ScriptedReplica("r1", answer)
    async with front(gone, other) as router:
        now = asyncio.get_running_loop().time()
        router.models["m"].apply("r1", StateEvent.PROBE_FAILED, now)
        await gone.stop()
        answered = await router.chat()
        assert (answered.status_code, answered.headers["x-warmroute-replica"]) == (200, "r1")
