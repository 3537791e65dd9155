"""A GGUF file as a source of tensors by Hugging Face's names."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from prompt.model_files import GgufFile
from replica.models.config import ModelConfig, config_from_gguf

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ROUTER = "ffn_gate_inp"
# One expert's tensor, as in older files, or all of a layer's in one: [experts, rows, columns].
_EXPERT = re.compile(r"(ffn_gate|ffn_up|ffn_down)(?:_exps|\.(\d+))")
# Only this architecture's queries and keys are written in another order.
_INTERLEAVED = "llama"
_ROPE_DIVISORS = "rope_freqs.weight"
_BIASES = {
    "qkv": "blk.0.attn_q.bias",
    "output": "blk.0.attn_output.bias",
    "mlp": "blk.0.ffn_down.bias",
}


class GgufSource:
    """Tensors of a GGUF file, dequantised when read."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            ModelFileError: the file cannot be read or is of an unsupported model.
        """
        self.where = path.name
        self._file = GgufFile(path)
        self._shapes = self._file.shapes
        self.config = self._read_config()
        # By Hugging Face's name: the tensor, and which part of it where it is a layer's experts.
        self._places: dict[str, tuple[str, int | None]] = {}
        for name, shape in self._shapes.items():
            for huggingface_name, part in _huggingface_names(name, shape, self.config):
                self._places[huggingface_name] = name, part

    def _read_config(self) -> ModelConfig:
        tensors = self._shapes
        embedding = tensors.get("token_embd.weight")
        divisors = None
        if _ROPE_DIVISORS in tensors:
            divisors = tuple(self._file.read(_ROPE_DIVISORS).tolist())
        return config_from_gguf(
            self._file.metadata,
            vocab_size=embedding[0] if embedding else 1,
            tied_embeddings="output.weight" not in tensors,
            biases=frozenset(kind for kind, name in _BIASES.items() if name in tensors),
            rope_divisors=divisors,
            where=self.where,
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: self._shapes[place][0 if part is None else 1 :]
            for name, (place, part) in self._places.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """The tensor in fp32."""
        place, part = self._places[name]
        read = self._file.read(place) if part is None else self._file.read_part(place, part)
        tensor = torch.from_numpy(read)
        if self._file.metadata.get("general.architecture") != _INTERLEAVED:
            return tensor
        if ".q_proj." in name:
            return _undo_interleaving(tensor, self.config.num_heads)
        if ".k_proj." in name:
            return _undo_interleaving(tensor, self.config.num_kv_heads)
        return tensor


def _huggingface_names(
    name: str, shape: tuple[int, ...], config: ModelConfig
) -> Iterator[tuple[str, int | None]]:
    """What Hugging Face calls a tensor, or each part of one that it has in parts, by their index.

    A tensor that we do not know keeps a name that no model has, so that it is refused.
    """
    if name == _ROPE_DIVISORS:
        return
    layer = _LAYER.fullmatch(name)
    if layer is None:
        yield _OTHER_NAMES.get(name, name), None
        return
    index, part, kind = layer.groups()
    prefix = f"model.layers.{index}."
    expert = _EXPERT.fullmatch(part)
    if config.experts is not None and part == _ROUTER:
        yield f"{prefix}{config.experts.names.router}.{kind}", None
    elif config.experts is not None and expert is not None:
        names = config.experts.names
        own = {"ffn_gate": names.gate, "ffn_up": names.up, "ffn_down": names.down}[expert[1]]
        if expert[2] is not None:
            yield f"{prefix}{names.experts}.{expert[2]}.{own}.{kind}", None
        elif shape[:1] == (config.experts.count,):
            for number in range(config.experts.count):
                yield f"{prefix}{names.experts}.{number}.{own}.{kind}", number
        else:
            yield name, None
    else:
        yield f"{prefix}{_LAYER_NAMES.get(part, part)}.{kind}", None


def _undo_interleaving(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head back from (x0, x[d/2], x1, x[d/2 + 1], …) to (x0, x1, …, x[d/2], …).

    Source: llama.cpp `convert_hf_to_gguf.py`, `LlamaModel.permute`, of which this is the inverse.
    """
    rows = tensor.shape[0]
    pairs = tensor.view(heads, rows // heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)
