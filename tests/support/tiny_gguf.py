"""Writes a tiny model's Hugging Face directory as the GGUF file that llama.cpp makes of it."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file

# What llama.cpp calls a family where it has another word; Llama's kin are all "llama".
_KINDS = {"mistral": "llama", "mixtral": "llama", "qwen3_moe": "qwen3moe"}
_EXPERT = re.compile(r"model\.layers\.(\d+)\..+\.experts\.(\d+)\.(\w+)\.weight")
_MATRICES = {"w1": "gate", "w2": "down", "w3": "up"} | {
    f"{name}_proj": name for name in ("gate", "up", "down")
}


def write_gguf(
    directory: Path,
    file: Path,
    *,
    quantisation: str = "F32",
    merged_experts: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """The directory's model as llama.cpp would convert it: Llama's queries and keys interleaved.

    Args:
        quantisation: Of matrices; all else is fp32.
        merged_experts: One tensor for all experts of a layer; else, as once, one for each.
        metadata: Counts and such that the architecture's keys claim in place of the model's.
    """
    config = json.loads((directory / "config.json").read_text())
    kind = _KINDS.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(file, kind)
    for key, value in (_metadata(config) | dict(metadata or {})).items():
        getattr(writer, f"add_{key}")(value)
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in _tensors(tensors, config, kind, merged_experts):
        values = tensor.contiguous().numpy()
        if values.ndim > 1 and quantisation != "F32" and "ffn_gate_inp" not in name:
            type = gguf.GGMLQuantizationType[quantisation]
            writer.add_tensor(name, gguf.quants.quantize(values, type), raw_dtype=type)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    """By the names of GGUFWriter's methods."""
    said = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "head_count": config["num_attention_heads"],
        "head_count_kv": config["num_key_value_heads"],
        "layer_norm_rms_eps": config["rms_norm_eps"],
        "rope_freq_base": config["rope_parameters"]["rope_theta"],
    }
    if config.get("head_dim"):
        said |= {"key_length": config["head_dim"], "value_length": config["head_dim"]}
    if config.get("num_experts_per_tok"):
        said |= {
            "expert_count": config.get("num_experts") or config["num_local_experts"],
            "expert_used_count": config["num_experts_per_tok"],
        }
    if config.get("moe_intermediate_size"):
        said["expert_feed_forward_length"] = config["moe_intermediate_size"]
    return said


def _tensors(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], kind: str, merged_experts: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """By the file's names."""
    architecture = {name: one for one, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if expert := _EXPERT.fullmatch(name):
            layer, number, matrix = expert[1], int(expert[2]), f"ffn_{_MATRICES[expert[3]]}"
            experts.setdefault(f"blk.{layer}.{matrix}", {})[number] = tensor
            continue
        for part, key in heads.items():
            if part in name and kind == "llama":
                pairs = tensor.view(config[key], 2, -1, tensor.shape[1])
                tensor = pairs.transpose(1, 2).reshape(tensor.shape)
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), tensor
    rope = config["rope_parameters"]
    if rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", _llama3_divisors(rope, config["head_dim"])
    for name, matrices in experts.items():
        if merged_experts:
            yield f"{name}_exps.weight", torch.stack([matrices[i] for i in range(len(matrices))])
        else:
            for number, matrix in matrices.items():
                yield f"{name}.{number}.weight", matrix


def _llama3_divisors(rope: dict[str, Any], head_dim: int) -> torch.Tensor:
    """What llama.cpp writes in place of Llama 3's rule: a divisor for each frequency."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context, divisors = rope["original_max_position_embeddings"], []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (index / head_dim)
        if wavelength < context / high:
            divisors.append(1.0)
        elif wavelength > context / low:
            divisors.append(rope["factor"])
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(divisors)
