"""The replica's configuration: what is accepted, and how what is wrong is named."""

from typing import Any

import msgspec
import pytest
import yaml

from replica.config import ReplicaConfig

FULL = """
id: r0
listen: {host: 127.0.0.1, port: 8101}
model: {name: m, path: "package:p/m.gguf", dtype: auto, max_model_len: 4096, aliases: []}
engine: {device: cpu, backend: torch, threads: 1, block_size: 16,
  memory_fraction: 0.9, eager: false, max_batched_tokens: 512, max_running_sequences: 32,
  max_waiting_sequences: 256, prefix_cache: true}
kv_events: {endpoint: "tcp://127.0.0.1:5557", replay: "tcp://127.0.0.1:5558", topic: "",
  buffer_steps: 10000}
load_reports: {endpoint: "tcp://127.0.0.1:5559", interval_s: 1.0}
limits: {max_body_bytes: 1000000}
"""


def test_a_full_configuration_is_read_and_a_short_one_has_the_same_defaults() -> None:
    full = msgspec.convert(yaml.safe_load(FULL), ReplicaConfig)
    short = msgspec.convert(
        {"id": "r0", "model": {"name": "m", "path": "package:p/m.gguf"}}, ReplicaConfig
    )
    assert full.kv_events is not None
    assert (short.kv_events, short.load_reports) == (None, None)
    assert (short.listen, short.model, short.engine) == (full.listen, full.model, full.engine)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engin": {}}, "unknown field `engin`"),
        ({"engine": {"block_sizes": 1}}, r"unknown field `block_sizes` - at `\$\.engine`"),
        ({"engine": {"block_size": 0}}, r">= 1 - at `\$\.engine\.block_size`"),
        ({"engine": {"device": "tpu"}}, r"at `\$\.engine\.device`"),
        ({"engine": {"backend": "cuda"}}, r"at `\$\.engine\.backend`"),
        ({"listen": {"port": 70000}}, r"at `\$\.listen\.port`"),
        ({"load_reports": {"endpoint": "x", "interval_s": 0}}, r"\$\.load_reports\.interval_s"),
        ({"engine": {"max_batched_tokens": 8}}, "must be at least engine.max_running_sequences"),
        ({"engine": {"kv_cache_blocks": 10}}, "hold 160 tokens, fewer than model.max_model_len"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_value_is_named_with_its_path(change: dict[str, Any], message: str) -> None:
    raw = {"id": "r0", "model": {"name": "m", "path": "p"}, **change}
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(raw, ReplicaConfig)
