"""A model's shape from a Hugging Face config.json: what we would not honour is an error."""

from collections.abc import Mapping
from typing import Any

from replica.models.config import (
    FAMILIES,
    ExpertsConfig,
    Family,
    Llama3Scaling,
    ModelConfig,
    Reader,
    RopeConfig,
)
from replica.models.errors import UnsupportedModel


def config_from_huggingface(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """The shape that a config.json states, in the old form or transformers 5's.

    Args:
        raw: The file's content.
        where: The file's name, for errors.

    Raises:
        UnsupportedModel: it asks for something we do not compute, or lacks a needed key.
    """
    reader = Reader(raw, where)
    architectures = raw.get("architectures") or []
    if len(architectures) != 1:
        raise UnsupportedModel(f"{where}: architectures is {architectures!r}, not a list of one")
    reader.require("hidden_act", ("silu", "swish"), default="silu")
    if not _quantises_only_the_cache(raw.get("quantization_config")):
        reader.require("quantization_config", (None,), default=None)
    reader.require("pretraining_tp", (1, None), default=1)
    heads = reader.integer("num_attention_heads")
    hidden = reader.integer("hidden_size")
    head_dim = reader.integer("head_dim", default=hidden // heads)
    architecture = str(architectures[0])
    family = FAMILIES.get(architecture, Family())
    bias = bool(raw.get("attention_bias", False))
    layers = reader.integer("num_hidden_layers")
    return ModelConfig(
        architecture=architecture,
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=reader.integer("num_key_value_heads", default=heads),
        head_dim=head_dim,
        norm_eps=reader.number("rms_norm_eps", default=1e-6),
        rope=_rope_from_huggingface(reader),
        max_model_len=reader.integer("max_position_embeddings"),
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=bias or family.qkv_bias,
        output_bias=bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        head_norms=family.head_norms,
        windows=_windows_from_huggingface(reader, family, layers),
        experts=_experts_from_huggingface(reader, family, layers),
    )


def _quantises_only_the_cache(settings: object) -> bool:
    """Whether weights are plain, and scales for a cache of float8 lie beside them.

    Source: compressed-tensors, `QuantizationConfig` (`config_groups` are of weights).
    """
    match settings:
        case {
            "quant_method": "compressed-tensors",
            "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"},
            **others,
        }:
            return not others.get("config_groups")
    return False


def _experts_from_huggingface(reader: Reader, family: Family, layers: int) -> ExpertsConfig | None:
    raw = reader.raw
    if family.experts is None:
        return None
    only_one, step = raw.get("mlp_only_layers") or (), reader.integer("decoder_sparse_step", 1)
    dense = reader.integer("intermediate_size")
    return ExpertsConfig(
        # transformers 5 calls it as Mixtral always did.
        count=reader.integer("num_experts" if "num_experts" in raw else "num_local_experts"),
        per_token=reader.integer("num_experts_per_tok"),
        intermediate_size=reader.integer("moe_intermediate_size", default=dense),
        # Mixtral has no word for it: it always does.
        renormalise=bool(raw.get("norm_topk_prob", raw.get("model_type") == "mixtral")),
        layers=tuple(index not in only_one and (index + 1) % step == 0 for index in range(layers)),
        names=family.experts,
    )


def _windows_from_huggingface(
    reader: Reader, family: Family, layers: int
) -> tuple[int | None, ...]:
    raw = reader.raw
    window = raw.get("sliding_window")
    if window is None or not raw.get("use_sliding_window", not family.windows_are_optional):
        return (None,) * layers
    if not family.has_windows:
        raise UnsupportedModel(f"{reader.where}: sliding_window {window!r} is not supported")
    width = reader.integer("sliding_window")
    kinds = raw.get("layer_types")
    if kinds is None:  # as before transformers 4.53
        full = raw.get("max_window_layers", 0) if family.windows_are_optional else 0
        return (None,) * min(full, layers) + (width,) * max(layers - full, 0)
    known = {"full_attention": None, "sliding_attention": width}
    if len(kinds) != layers or not known.keys() >= set(kinds):
        raise UnsupportedModel(f"{reader.where}: layer_types {kinds!r} are not supported")
    return tuple(known[kind] for kind in kinds)


def _rope_from_huggingface(reader: Reader) -> RopeConfig:
    raw, where = reader.raw, reader.where
    # transformers 5 writes rope_parameters; before, rope_theta and rope_scaling stood apart.
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    partial = parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial not in (1.0, None):
        raise UnsupportedModel(f"{where}: partial_rotary_factor {partial} is not supported")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind != "llama3":
        raise UnsupportedModel(
            f"{where}: rope scaling {kind!r} is not supported (default and llama3 are)"
        )
    scaling = Reader(parameters, f"{where}: rope scaling")
    return RopeConfig(
        theta=theta,
        scaling=Llama3Scaling(
            factor=scaling.number("factor"),
            low_frequency_factor=scaling.number("low_freq_factor"),
            high_frequency_factor=scaling.number("high_freq_factor"),
            original_context=scaling.integer("original_max_position_embeddings"),
        ),
    )
