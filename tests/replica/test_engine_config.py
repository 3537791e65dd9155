"""The replica's configuration: what is accepted, and how what is wrong is named."""

from typing import Any

import msgspec
import pytest
import yaml

from replica.config import ReplicaConfig
from replica.core.evictions import EVICTIONS, EvictionName
from replica.engine.process import build_scheduler

FULL = """
id: r0
listen: {host: 127.0.0.1, port: 8101}
model: {name: m, path: "package:p/m.gguf", dtype: auto, max_model_len: 4096, aliases: []}
engine: {device: cpu, backend: torch, threads: 1, block_size: 16, memory_fraction: 0.9,
  eager: false, kv_cache_dtype: auto, max_batched_tokens: 512, max_running_sequences: 32,
  max_waiting_sequences: 256, prefix_cache: true, eviction: lru}
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
        ({"engine": {"tensor_parallel": 0}}, r">= 1 - at `\$\.engine\.tensor_parallel`"),
        (
            {"engine": {"tensor_parallel": 2, "device": "cuda:1"}},
            r"engine\.device \(cuda:1\) must be cuda or cpu with engine\.tensor_parallel \(2\)",
        ),
        ({"engine": {"kv_cache_dtype": "fp4"}}, r"at `\$\.engine\.kv_cache_dtype`"),
        ({"engine": {"eviction": "fifo"}}, r"at `\$\.engine\.eviction`"),
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


@pytest.mark.parametrize("name", list(EVICTIONS))
def test_the_pool_evicts_as_configured(name: EvictionName) -> None:
    raw = {"id": "r0", "model": {"name": "m", "path": "p"}, "engine": {"eviction": name}}
    scheduler = build_scheduler(msgspec.convert(raw, ReplicaConfig), 300)
    assert type(scheduler.pool._eviction) is EVICTIONS[name]
