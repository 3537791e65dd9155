"""Through real processes: conversations stay with their prefix, others spread, the dead are left.

Marked `processes`: each starts a router and two replicas of the embedded model.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import MODEL, Stack, running_stack

pytestmark = pytest.mark.processes

TOPICS = [
    "the sea", "bread", "mountains", "a lost key", "violins", "rain", "old maps", "chess", "owls",
    "trains", "glass", "deserts", "ink", "bridges", "honey", "snow", "clocks", "tea", "wolves",
    "islands",
]  # fmt: skip


def cached_tokens(body: dict[str, Any]) -> int:
    cached: int = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def converse(stack: Stack, opening: str, turns: int) -> list[tuple[str, int, int, int]]:
    """(replica, prompt tokens, cached tokens, predicted tokens) of each turn."""
    messages = [{"role": "system", "content": opening}]
    seen = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn}: say a little more."})
        response, body = stack.chat(messages, max_tokens=24)
        assert response.status_code == 200, body
        messages.append(body["choices"][0]["message"] | {"role": "assistant"})
        seen.append(
            (
                response.headers["x-warmroute-replica"],
                body["usage"]["prompt_tokens"],
                cached_tokens(body),
                int(response.headers["x-warmroute-matched-tokens"]),
            )
        )
    return seen


def test_a_conversation_stays_where_its_prefix_is_and_is_predicted_exactly(stack: Stack) -> None:
    opening = "You know everything about lighthouses and tell it plainly. " * 8
    turns = converse(stack, opening, turns=4)
    assert len({replica for replica, *_ in turns}) == 1
    for before, now in itertools.pairwise(turns):
        assert now[2] >= 0.9 * before[1], turns
    for _, _, cached, predicted in turns:
        assert predicted == cached, turns


def test_unrelated_conversations_use_both_replicas_and_are_predicted_exactly(stack: Stack) -> None:
    used = set()
    for topic in TOPICS:
        response, body = stack.chat(
            [{"role": "user", "content": f"Tell me one thing about {topic}."}], max_tokens=4
        )
        used.add(response.headers["x-warmroute-replica"])
        assert int(response.headers["x-warmroute-matched-tokens"]) == cached_tokens(body)
    assert used == {"r0", "r1"}


def test_a_salted_prompt_is_only_matched_with_its_salt(stack: Stack) -> None:
    messages = [{"role": "user", "content": "A secret of this tenant alone. " * 20}]
    for salt, warm in [("a", False), ("a", True), ("b", False), (None, False)]:
        response, body = stack.chat(messages, max_tokens=1, cache_salt=salt)
        predicted = int(response.headers["x-warmroute-matched-tokens"])
        assert predicted == cached_tokens(body)
        # The default system prompt is shared by those without a salt.
        assert (cached_tokens(body) > 64) == warm, salt


def test_a_reset_cache_is_forgotten_by_the_router(stack: Stack) -> None:
    messages = [{"role": "user", "content": "Remember this until you are told not to. " * 10}]
    stack.chat(messages, max_tokens=1)
    _, body = stack.chat(messages, max_tokens=1)
    assert cached_tokens(body) > 64
    for replica in ("r0", "r1"):
        reset = stack.http.post(f"{stack.replica_url(replica)}/reset_prefix_cache")
        assert reset.status_code == 200
    stack.settled()
    assert stack.held_tokens("r0") == stack.held_tokens("r1") == 0
    response, body = stack.chat(messages, max_tokens=1)
    assert cached_tokens(body) == int(response.headers["x-warmroute-matched-tokens"]) == 0


def test_a_client_that_leaves_frees_the_replicas_blocks(stack: Stack) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Count to a thousand."}],
        "max_tokens": 1000,
        "ignore_eos": True,
        "stream": True,
    }
    with stack.http.stream("POST", "/v1/chat/completions", json=body) as response:
        replica = response.headers["x-warmroute-replica"]
        next(response.iter_raw())
    url = stack.replica_url(replica)
    stack.until(
        lambda: stack.http.get(f"{url}/load").json()["running"] == 0, "the sequence is aborted"
    )
    stack.until(lambda: stack.replica(replica)["leases"] == 0, "the lease is released")


def test_the_metrics_agree_with_what_was_answered(stack: Stack) -> None:
    stack.chat([{"role": "user", "content": "Hello"}], max_tokens=1)
    text = stack.http.get(f"{stack.admin_url}/metrics").text
    assert f'warmroute_requests_total{{model="{MODEL}",replica="r0",status="200"}}' in text
    assert (
        'warmroute_replica_state{model="smollm2-135m-instruct",replica="r1",state="ready"} 1.0'
        in text
    )
    replica = stack.http.get(f"{stack.replica_url('r0')}/metrics").text
    assert "vllm:prefix_cache_hits_total" in replica
    assert "vllm:time_to_first_token_seconds_bucket" in replica


def test_a_killed_replica_is_left_and_used_again_with_an_empty_cache(tmp_path: Path) -> None:
    with running_stack(tmp_path, ["r0", "r1"]) as stack:
        messages = [{"role": "user", "content": "Tell me of the lighthouse at the cape. " * 10}]
        response, _ = stack.chat(messages, max_tokens=4)
        home = response.headers["x-warmroute-replica"]
        other = "r1" if home == "r0" else "r0"
        stack.settled()
        assert stack.held_tokens(home) > 64
        stack.processes.pop(home).kill()

        for _ in range(3):  # nobody has told the router
            response = stack.http.post(
                "/v1/chat/completions",
                json={"model": MODEL, "messages": messages, "max_tokens": 1, "temperature": 0},
            )
            assert response.status_code == 200, response.text
            assert response.headers["x-warmroute-replica"] == other

        stack.start(home)
        stack.until(lambda: stack.replica(home)["state"] == "ready", "it is ready again")
        stack.until(lambda: stack.replica(home)["events"]["synced"], "it is followed again")
        assert stack.held_tokens(home) == 0

        stack.processes.pop(other).kill()
        response, body = stack.chat(messages, max_tokens=1)
        assert response.headers["x-warmroute-replica"] == home
        assert cached_tokens(body) == int(response.headers["x-warmroute-matched-tokens"]) == 0

        stack.processes.pop(home).kill()
        response = stack.http.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": messages}
        )
        assert response.status_code == 503
        assert "retry-after" in response.headers
