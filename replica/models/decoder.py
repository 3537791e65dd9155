"""The decoder of Llama and its kin, for inference: a flat batch of tokens in, logits out.

    x ─┬─ norm ─ qkv ─ rope, cache ─ attention ─ o ─(+)─┬─ norm ─ gate·up ─ silu ─ down ─(+)─
       └──────────────────────────────────────────────┘ └─────────────────────────────────┘

Mistral adds a window to attention, Qwen 2 biases to qkv, Qwen 3 a norm to each query and key;
Mixtral and Qwen 3 MoE have experts in place of the last line (`mlp`).

Sources: Touvron et al. 2023, arXiv:2302.13971; Jiang et al. 2023, arXiv:2310.06825 (windows); Yang
et al. 2025, arXiv:2505.09388 (norms); tensor names: transformers `modeling_llama.py`,
`modeling_qwen3.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from kernels.operations import Operations
from replica.models.config import ModelConfig
from replica.models.linear import Linear
from replica.models.mlp import Mlp, TensorReader, mlp_shapes, read_mlp
from replica.models.rope import rope_table


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTensors:
    """One step's batch on the device: decode tokens first, then the runs of prefill tokens.

    Attributes:
        token_ids: [tokens] int64.
        positions: [tokens] int64.
        slots: [tokens] int64: where each token's KV goes.
        decodes: How many of the tokens, from the first, are the only new one of their sequence.
        decode_tables: [decodes, blocks] int32, or None without decodes.
        decode_lengths: [decodes] int32: tokens in the cache after this step.
        prefill_tables: [prefills, blocks] int32, or None without prefills.
        prefill_offsets: [prefills + 1] int32, into the tokens after the decodes.
        prefill_lengths: [prefills] int32.
        logit_rows: [rows] int64: the tokens whose successor is wanted; None: all.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    decodes: int
    decode_tables: torch.Tensor | None = None
    decode_lengths: torch.Tensor | None = None
    prefill_tables: torch.Tensor | None = None
    prefill_offsets: torch.Tensor | None = None
    prefill_lengths: torch.Tensor | None = None
    logit_rows: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    attention_norm: torch.Tensor
    qkv: Linear
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: Linear
    mlp_norm: torch.Tensor
    mlp: Mlp


class Decoder:
    """Weights and forward pass. The KV cache belongs to the caller."""

    def __init__(
        self, config: ModelConfig, read: TensorReader, device: torch.device, ops: Operations
    ) -> None:
        """
        Args:
            read: Gives a tensor of `tensor_shapes(config)` by name, in the dtype to compute in.
        """
        self.config = config
        self._ops = ops
        self._embedding = read("model.embed_tokens.weight")
        self._layers = [_read_layer(config, read, index) for index in range(config.num_layers)]
        self._norm = read("model.norm.weight")
        self._head = Linear(self._embedding if config.tied_embeddings else read("lm_head.weight"))
        self._cosine, self._sine = rope_table(
            config.rope, config.head_dim, config.max_model_len, device
        )
        self._scale = config.head_dim**-0.5

    def forward(self, step: StepTensors, kv_caches: list[torch.Tensor]) -> torch.Tensor:
        """Logits [rows, vocabulary] of `step.logit_rows`; writes the new tokens' KV.

        Args:
            kv_caches: One [2, blocks, block_size, kv_heads, head_dim] a layer.
        """
        config, ops = self.config, self._ops
        cosine, sine = self._cosine[step.positions], self._sine[step.positions]
        residual = functional.embedding(step.token_ids, self._embedding)
        x = ops.rms_norm(residual, self._layers[0].attention_norm, config.norm_eps)
        for index, (layer, kv_cache) in enumerate(zip(self._layers, kv_caches, strict=True)):
            if index:
                x, residual = ops.add_rms_norm(x, residual, layer.attention_norm, config.norm_eps)
            qkv = layer.qkv(x).view(len(x), -1, config.head_dim)
            if layer.query_norm is not None and layer.key_norm is not None:
                self._norm_heads(qkv, 0, config.num_heads, layer.query_norm)
                self._norm_heads(qkv, config.num_heads, config.num_kv_heads, layer.key_norm)
            query = ops.rope_and_cache_write(qkv, cosine, sine, kv_cache, step.slots)
            attended = self._attend(query, kv_cache, step, config.windows[index])
            x = layer.output(attended.view(len(x), -1))
            x, residual = ops.add_rms_norm(x, residual, layer.mlp_norm, config.norm_eps)
            x = layer.mlp(x, ops)
        if step.logit_rows is not None:
            x, residual = x[step.logit_rows], residual[step.logit_rows]
        x, _ = ops.add_rms_norm(x, residual, self._norm, config.norm_eps)
        return self._head(x)

    def _norm_heads(self, qkv: torch.Tensor, first: int, count: int, weight: torch.Tensor) -> None:
        """Each of these heads by itself, in place."""
        heads = qkv[:, first : first + count]
        rows = heads.reshape(-1, self.config.head_dim)
        heads.copy_(self._ops.rms_norm(rows, weight, self.config.norm_eps).view(heads.shape))

    def _attend(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        step: StepTensors,
        window: int | None,
    ) -> torch.Tensor:
        parts = []
        if step.decode_tables is not None:
            assert step.decode_lengths is not None
            parts.append(
                self._ops.paged_attention_decode(
                    query[: step.decodes],
                    kv_cache,
                    step.decode_tables,
                    step.decode_lengths,
                    self._scale,
                    window=window,
                )
            )
        if step.prefill_tables is not None:
            assert step.prefill_offsets is not None
            assert step.prefill_lengths is not None
            parts.append(
                self._ops.paged_attention_prefill(
                    query[step.decodes :],
                    kv_cache,
                    step.prefill_tables,
                    step.prefill_offsets,
                    step.prefill_lengths,
                    self._scale,
                    window=window,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_layer(config: ModelConfig, read: TensorReader, index: int) -> _Layer:
    prefix = f"model.layers.{index}."

    def linear(names: tuple[str, ...], with_bias: bool) -> Linear:
        weights = [read(f"{prefix}{name}.weight") for name in names]
        biases = [read(f"{prefix}{name}.bias") for name in names] if with_bias else None
        return Linear(torch.cat(weights), torch.cat(biases) if biases else None)

    def head_norm(name: str) -> torch.Tensor | None:
        return read(f"{prefix}self_attn.{name}.weight") if config.head_norms else None

    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return _Layer(
        attention_norm=read(f"{prefix}input_layernorm.weight"),
        qkv=linear(qkv, config.qkv_bias),
        query_norm=head_norm("q_norm"),
        key_norm=head_norm("k_norm"),
        output=linear(("self_attn.o_proj",), config.output_bias),
        mlp_norm=read(f"{prefix}post_attention_layernorm.weight"),
        mlp=read_mlp(config, read, index),
    )


def tensor_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor the network has, by Hugging Face's names."""
    return dict(_tensor_shapes(config))


def _tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config.hidden_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden, config.qkv_bias),
        "self_attn.k_proj": (keys, hidden, config.qkv_bias),
        "self_attn.v_proj": (keys, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, queries, config.output_bias),
    }
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
        if config.head_norms:
            yield f"{prefix}self_attn.q_norm.weight", (config.head_dim,)
            yield f"{prefix}self_attn.k_norm.weight", (config.head_dim,)
        for name, (rows, columns, has_bias) in linears.items():
            yield f"{prefix}{name}.weight", (rows, columns)
            if has_bias:
                yield f"{prefix}{name}.bias", (rows,)
        for name, shape in mlp_shapes(config, index):
            yield f"{prefix}{name}", shape
    yield "model.norm.weight", (hidden,)
    if not config.tied_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)
