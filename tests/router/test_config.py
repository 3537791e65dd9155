"""A wrong router.yaml stops with path and field; references to the environment expand."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec import structs

from cli.config_file import ConfigError, load_router
from router.config import AdmissionConfig
from router.core.admission import Admission

REPLICA: dict[str, Any] = {"id": "r0", "url": "http://127.0.0.1:8101"}


def router(replica: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    model = {"name": "m", "replicas": [{**REPLICA, **(replica or {})}]}
    return {"models": [model], **fields}


def load(tmp_path: Path, content: Any) -> Any:
    path = tmp_path / "router.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return load_router(path)


def test_the_smallest_config_has_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, router())
    assert config.listen.port == 8000
    assert config.models[0].policy.kind == "prefix_aware"
    assert config.models[0].replicas[0].address == ("127.0.0.1", 8101)
    assert config.models[0].replicas[0].cache_tokens is None
    assert config.timeouts.total_s is None


def test_admission_limits_are_read(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        router(
            {"max_tokens": 9}, admission={"max_tokens": 7, "aging_s": None, "queue_requests": 0}
        ),
    )
    assert config.models[0].replicas[0].max_tokens == 9
    admission = Admission(**structs.asdict(config.admission))
    assert admission.capacity.limited
    assert not Admission(**structs.asdict(AdmissionConfig())).capacity.limited


FIRST = "$.models[0].replicas[0]"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(router({"url": 7}), f"`{FIRST}.url`", id="url-is-a-number"),
        pytest.param(router({"url": "127.0.0.1:8101"}), "http://host:port", id="url-no-scheme"),
        pytest.param(router({"url": "ftp://a:1"}), "http://host:port", id="url-ftp"),
        pytest.param(router({"url": "http://a:1/v1"}), "no path", id="url-with-path"),
        pytest.param(router({"url": "http://u:p@a:1"}), "user", id="url-with-user"),
        pytest.param(router({"url": "http://a:99999"}), f"`{FIRST}`", id="url-port-too-large"),
        pytest.param(router({"url": "http://a:0"}), "port 0", id="url-port-0"),
        pytest.param(router({"id": ""}), f"`{FIRST}`", id="empty-id"),
        pytest.param(router({"id": "a\r\nb"}), f"`{FIRST}`", id="id-with-line-break"),
        pytest.param(router({"weight": 1}), f"unknown field `weight` - at `{FIRST}`",
                     id="unknown-key"),
        pytest.param(router({"kv_events": {}}), f"endpoint` - at `{FIRST}.kv_events`",
                     id="no-endpoint"),
        pytest.param(router({"kv_events": {"endpoint": "tcp://*:5557"}}),
                     f"`{FIRST}.kv_events`", id="endpoint-is-a-wildcard"),
        pytest.param(router({"kv_events": {"endpoint": "tcp://a"}}), "tcp://host:port",
                     id="endpoint-without-port"),
        pytest.param(router({"kv_events": {"endpoint": "tcp://a:1", "replay": "a:2"}}),
                     "replay must look like", id="replay-without-scheme"),
        pytest.param(router({"load_reports": {"endpoint": "x"}}), f"`{FIRST}.load_reports`",
                     id="load-endpoint"),
        pytest.param(router({"cache_tokens": 0}), f"`{FIRST}.cache_tokens`", id="cache-tokens"),
        pytest.param(router({"max_tokens": 0}), f"`{FIRST}.max_tokens`", id="max-tokens"),
        pytest.param(router(admission={"max_tokens": -1}), "`$.admission.max_tokens`",
                     id="max-tokens-over-all"),
        pytest.param(router(admission={"aging_s": 0}), "`$.admission.aging_s`", id="aging"),
        pytest.param(router(admission={"queue_timeout_s": None}), "`$.admission.queue_timeout_s`",
                     id="every-wait-has-an-end"),
        pytest.param(router(listen={"port": 70000}), "`$.listen.port`", id="port"),
        pytest.param(router(timeouts={"connect_s": 0}), "`$.timeouts.connect_s`", id="timeout"),
        pytest.param(router(timeouts={"total_s": 0}), "`$.timeouts.total_s`", id="total"),
        pytest.param(router(limits={"max_requests_per_connection": 0}),
                     "`$.limits.max_requests_per_connection`", id="requests-per-connection"),
        pytest.param(router(limits={"max_requests": 0}), "`$.limits.max_requests`", id="limit"),
        pytest.param(router(retry={"budget_ratio": 2}), "`$.retry.budget_ratio`", id="ratio"),
        pytest.param(router(probe={"path": "ready"}), "`$.probe`", id="probe-path"),
        pytest.param(router(polcy=1), "unknown field `polcy`", id="unknown-section"),
        pytest.param({"models": []}, "at least one model", id="no-models"),
        pytest.param({}, "required field `models`", id="empty-map"),
        pytest.param("", "Expected `object`, got `null`", id="empty-file"),
        pytest.param("a: [", "not YAML", id="not-yaml"),
        pytest.param({"models": [{"name": "m*", "replicas": []}]}, "`$.models[0]`",
                     id="wildcard-name"),
        pytest.param({"models": [{"name": "m", "aliases": ["a*b"], "replicas": []}]},
                     "alias 'a*b': * is only allowed at the end", id="wildcard-inside"),
        pytest.param({"models": [{"name": "m", "replicas": [REPLICA, REPLICA]}]},
                     "id 'r0' is used twice", id="duplicate-id"),
        pytest.param({"models": [{"name": n, "replicas": [REPLICA]} for n in "ab"]},
                     "id 'r0' is used twice", id="duplicate-id-across-models"),
        pytest.param({"models": [{"name": "a", "replicas": []}] * 2},
                     "name 'a' is used twice", id="duplicate-name"),
        pytest.param({"models": [{"name": "a", "aliases": ["a"], "replicas": []}]},
                     "name 'a' is used twice", id="alias-is-the-name"),
    ],
)  # fmt: skip
def test_a_wrong_file_names_itself_and_the_field(
    tmp_path: Path, content: Any, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'router.yaml'}: ")
    assert expected in message
    assert "\n" not in message


def test_references_to_the_environment_expand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICA_HOST", "10.0.0.1")
    monkeypatch.delenv("REPLICA_PORT", raising=False)
    content = router({"url": "http://${REPLICA_HOST}:${REPLICA_PORT:-8111}"})
    content["listen"] = {"port": "${REPLICA_PORT:-9000}"}
    config = load(tmp_path, content)
    assert config.models[0].replicas[0].address == ("10.0.0.1", 8111)
    assert config.listen.port == 9000


def test_a_reference_to_nothing_names_variable_and_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ConfigError, match="NOWHERE is not set - at") as caught:
        load(tmp_path, router({"url": "http://${NOWHERE}:1"}))
    assert f"`{FIRST}.url`" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_router(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("url", "address"),
    [("http://a:1/", ("a", 1)), ("http://a", ("a", 80)), ("http://[::1]:7", ("::1", 7))],
)
def test_urls_are_addresses(tmp_path: Path, url: str, address: tuple[str, int]) -> None:
    replica = load(tmp_path, router({"url": url})).models[0].replicas[0]
    assert replica.address == address
    assert not replica.base_url.endswith("/")
