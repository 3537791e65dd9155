"""Models, tokens, load and metrics of the replica's API."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fake_engine import ApiHarness, make_config, running_api


@pytest.fixture
async def api() -> AsyncIterator[ApiHarness]:
    async with running_api(make_config()) as harness:
        yield harness


async def samples(api: ApiHarness) -> dict[str, float]:
    """Every sample by name, its own labels in braces; model_name and engine are checked here."""
    async with api.session.get(api.url + "/metrics") as response:
        assert response.status == 200
        text = await response.text()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("model_name"), labels.pop("engine")) == ("bytes", "0")
            suffix = "".join(f"{{{name}={value}}}" for name, value in sorted(labels.items()))
            found[sample.name + suffix] = sample.value
    return found


async def test_the_model_and_its_aliases_are_listed(api: ApiHarness) -> None:
    _, answer = await api.get("/v1/models")
    assert answer["object"] == "list"
    assert [(card["id"], card["parent"]) for card in answer["data"]] == [
        ("bytes", None),
        ("echo", "bytes"),
    ]
    assert {card["max_model_len"] for card in answer["data"]} == {256}


async def test_tokenize_and_detokenize_are_each_others_inverse(api: ApiHarness) -> None:
    _, answer = await api.post("/tokenize", {"prompt": "Grüße"})
    assert answer == {"tokens": list("Grüße".encode()), "count": 7, "max_model_len": 256}
    _, answer = await api.post("/detokenize", {"tokens": answer["tokens"]})
    assert answer == {"prompt": "Grüße"}


async def test_tokenize_renders_messages_as_a_chat_does(api: ApiHarness) -> None:
    messages = [{"role": "user", "content": "hi"}]
    _, tokens = await api.post("/tokenize", {"messages": messages})
    _, answer = await api.post("/v1/chat/completions", {"messages": messages})
    assert tokens["count"] == answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
async def test_a_wrong_token_request_names_the_field(
    api: ApiHarness, path: str, body: Any, param: str
) -> None:
    status, answer = await api.post(path, body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_health_ready_version_and_load_answer(api: ApiHarness) -> None:
    assert await api.get("/health") == (200, {"status": "alive"})
    assert await api.get("/ready") == (200, {"status": "ready"})
    assert set((await api.get("/version"))[1]) == {"version"}
    _, load = await api.get("/load")
    assert (load["running"], load["waiting"], load["total_blocks"]) == (0, 0, 128)


async def test_metrics_have_vllms_names_and_count_what_happened(api: ApiHarness) -> None:
    body = {"prompt": "twelve bytes\n", "max_tokens": 5}
    await api.post("/v1/completions", body)
    await api.post("/v1/completions", body)
    await api.post("/v1/completions", {"prompt": "ab\n"})
    found = await samples(api)
    assert found["vllm:prompt_tokens_total"] == 29
    assert found["vllm:generation_tokens_total"] == 13
    assert found["vllm:prefix_cache_queries_total"] == 29
    assert found["vllm:prefix_cache_hits_total"] == 12
    assert found["vllm:num_preemptions_total"] == 0
    assert found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0
    assert found["vllm:kv_cache_usage_perc"] == 0
    assert found["vllm:request_success_total{finished_reason=length}"] == 2
    assert found["vllm:request_success_total{finished_reason=stop}"] == 1
    assert found["vllm:request_success_total{finished_reason=abort}"] == 0
    assert found["vllm:time_to_first_token_seconds_count"] == 3
    assert found["vllm:inter_token_latency_seconds_count"] == 10
    assert found["vllm:e2e_request_latency_seconds_count"] == 3
    assert found["vllm:request_queue_time_seconds_count"] == 3
    (info,) = (name for name in found if name.startswith("vllm:cache_config_info"))
    assert "{block_size=4}" in info
    assert "{num_gpu_blocks=128}" in info


async def test_our_metric_names_are_among_vllms(api: ApiHarness) -> None:
    recorded = Path(__file__).parents[2] / "../shared/captures/vllm-0.32.0-metrics.txt"
    if not recorded.exists():
        pytest.skip("no recorded vLLM metrics here")
    known = {
        line.split()[2] for line in recorded.read_text().splitlines() if line.startswith("# TYPE")
    }
    async with api.session.get(api.url + "/metrics") as response:
        text = await response.text()
    ours = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert all(name.startswith("warmroute:") for name in ours - known), ours - known
