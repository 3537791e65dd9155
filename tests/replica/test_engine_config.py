"""The replica's configuration: what is accepted, and how what is wrong is named."""

from typing import Any

import msgspec
import pytest
import yaml

from replica.config import ReplicaConfig
from replica.core.evictions import EVICTIONS, EvictionName
from replica.core.timing import PRESETS
from replica.engine.process import build_scheduler

FULL = """
id: r0
listen: {host: 127.0.0.1, port: 8101}
model: {name: m, path: "package:p/m.gguf", dtype: auto, max_model_len: 4096, aliases: []}
engine: {device: cpu, backend: torch, threads: 1, block_size: 16, memory_fraction: 0.9,
  eager: false, kv_cache_dtype: auto, max_batched_tokens: 512, max_running_sequences: 32,
  max_waiting_sequences: 256, prefix_cache: true, eviction: lru,
  queue_order: response_ratio, step_log: null}
kv_events: {endpoint: "tcp://127.0.0.1:5557", replay: "tcp://127.0.0.1:5558", topic: "",
  buffer_steps: 10000}
load_reports: {endpoint: "tcp://127.0.0.1:5559", interval_s: 1.0}
limits: {max_body_bytes: 1000000}
"""

STEPS = {"base_s": 0.1, "token_s": 0.2, "pair_s": 0.3, "sequence_s": 0.4, "held_s": 0.5}


def simulated(**section: Any) -> dict[str, Any]:
    return {"engine": {"backend": "simulated", "simulated": section}}


def read(change: dict[str, Any]) -> ReplicaConfig:
    return msgspec.convert(
        {"id": "r0", "model": {"name": "m", "path": "p"}, **change}, ReplicaConfig
    )


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
        ({"engine": {"queue_order": "sjf"}}, r"at `\$\.engine\.queue_order`"),
        ({"listen": {"port": 70000}}, r"at `\$\.listen\.port`"),
        ({"load_reports": {"endpoint": "x", "interval_s": 0}}, r"\$\.load_reports\.interval_s"),
        ({"engine": {"max_batched_tokens": 8}}, "must be at least engine.max_running_sequences"),
        ({"engine": {"kv_cache_blocks": 10}}, "hold 160 tokens, fewer than model.max_model_len"),
        ({"engine": {"simulated": {}}}, r"simulated: .* torch - at `\$\.engine`"),
        (simulated(preset="gpu"), r"preset: 'gpu' is none of h100-8b, .*\$\.engine\.simulated"),
        (simulated(slowness=0), r"> 0\.0 - at `\$\.engine\.simulated\.slowness`"),
        (simulated(answer_tokens=0), r">= 1 - at `\$\.engine\.simulated\.answer_tokens`"),
        (simulated(timing={"base_s": 1}), r"`token_s` - at `\$\.engine\.simulated\.timing`"),
        (
            simulated(timing={**STEPS, "pair_s": -1}),
            r">= 0\.0 - at `\$\.engine\.simulated\.timing\.pair_s`",
        ),
        (simulated(timing={**STEPS, "more_s": 1}), r"unknown field `more_s`"),
        ({"engine": {"backend": "simulated", "device": "cuda"}}, r"device \(cuda\) must be cpu"),
        ({"engine": {"backend": "simulated", "eager": True}}, r"eager \(True\) must be False"),
        (
            {"engine": {"backend": "simulated", "tensor_parallel": 2}},
            r"tensor_parallel \(2\) must be 1",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_value_is_named_with_its_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        read(change)


@pytest.mark.parametrize("name", list(EVICTIONS))
def test_the_pool_evicts_as_configured(name: EvictionName) -> None:
    raw = {"id": "r0", "model": {"name": "m", "path": "p"}, "engine": {"eviction": name}}
    scheduler = build_scheduler(msgspec.convert(raw, ReplicaConfig), 300)
    assert type(scheduler.pool._eviction) is EVICTIONS[name]


def test_a_simulated_replica_has_the_sizes_and_times_of_its_preset() -> None:
    engine = read({"engine": {"backend": "simulated"}}).engine
    preset = PRESETS["h100-8b"]
    assert (engine.max_batched_tokens, engine.max_running_sequences) == (8192, 256)
    assert engine.told_blocks == preset.cache_tokens // 16
    assert engine.simulated is not None
    assert engine.simulated.step_timing == preset.timing


def test_what_is_configured_of_a_simulated_replica_goes_before_its_preset() -> None:
    change = simulated(preset="cpu-smollm2", timing=STEPS, slowness=2)
    change["engine"] |= {"max_batched_tokens": 600, "kv_cache_blocks": 3000}
    engine = read(change).engine
    assert (engine.max_batched_tokens, engine.max_running_sequences) == (600, 32)
    assert engine.told_blocks == 3000
    assert engine.simulated is not None
    assert msgspec.to_builtins(engine.simulated.step_timing) == {
        name: 2 * value for name, value in STEPS.items()
    }


@pytest.mark.parametrize("change", [{}, simulated(timing=STEPS)], ids=["torch", "simulated"])
def test_a_configuration_reaches_the_engine_process_as_it_is(change: dict[str, Any]) -> None:
    config = read(change)
    assert msgspec.json.decode(msgspec.json.encode(config), type=ReplicaConfig) == config
