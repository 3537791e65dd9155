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
from replica.parallel.shard import Shard, columns_of, part_of, share_of


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
    key_scale: float
    value_scale: float


# As compressed-tensors names them, in files made for a cache of float8.
_KEY_SCALE, _VALUE_SCALE = "self_attn.k_scale", "self_attn.v_scale"


class Decoder:
    """Weights and forward pass. The KV cache belongs to the caller."""

    def __init__(
        self,
        config: ModelConfig,
        read: TensorReader,
        device: torch.device,
        ops: Operations,
        scales: Mapping[str, float],
        shard: Shard,
    ) -> None:
        """
        Args:
            config: The shape of the whole; ours is that of this rank's share.
            read: Gives a tensor of `tensor_shapes(config)` by name, in the dtype to compute in.
            scales: Some of `scale_names(config)`; others are 1. Only a cache of float8 takes them.

        Raises:
            ValueError: the model cannot be divided among the ranks.
        """
        self.config = share_of(config, shard)
        self._ops = ops
        self._shard = shard
        self._embedding = read("model.embed_tokens.weight")
        self._layers = [
            _read_layer(config, read, index, scales, shard) for index in range(config.num_layers)
        ]
        self._norm = read("model.norm.weight")
        said = columns_of(config.vocab_size, shard.rank, shard.size)
        self._head = Linear(
            self._embedding[said.start : said.stop]
            if config.tied_embeddings
            else read("lm_head.weight", rows=said)
        )
        self._cosine, self._sine = rope_table(
            config.rope, config.head_dim, config.max_model_len, device
        )
        self._scale = config.head_dim**-0.5

    def forward(self, step: StepTensors, kv_caches: list[torch.Tensor]) -> torch.Tensor:
        """Logits [rows, vocabulary] of `step.logit_rows`; writes the new tokens' KV.

        Args:
            kv_caches: One [2, blocks, block_size, kv_heads, head_dim] a layer.
        """
        config, ops, shard = self.config, self._ops, self._shard
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
            scales = {"key_scale": layer.key_scale, "value_scale": layer.value_scale}
            query = ops.rope_and_cache_write(qkv, cosine, sine, kv_cache, step.slots, **scales)
            attended = self._attend(query, kv_cache, step, config.windows[index], scales)
            x = shard.all_reduce(layer.output(attended.view(len(x), -1)))
            x, residual = ops.add_rms_norm(x, residual, layer.mlp_norm, config.norm_eps)
            x = shard.all_reduce(layer.mlp(x, ops))
        if step.logit_rows is not None:
            x, residual = x[step.logit_rows], residual[step.logit_rows]
        x, _ = ops.add_rms_norm(x, residual, self._norm, config.norm_eps)
        return shard.gather_columns(self._head(x), config.vocab_size)

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
        scales: dict[str, float],
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
                    **scales,
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
                    **scales,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_layer(
    config: ModelConfig, read: TensorReader, index: int, scales: Mapping[str, float], shard: Shard
) -> _Layer:
    prefix = f"model.layers.{index}."
    attention = f"{prefix}self_attn."
    queries = part_of(config.num_heads * config.head_dim, shard)
    keys = part_of(config.num_kv_heads * config.head_dim, shard)
    parts = {"q_proj": queries, "k_proj": keys, "v_proj": keys}

    def qkv(kind: str) -> torch.Tensor:
        return torch.cat([read(f"{attention}{one}.{kind}", rows=parts[one]) for one in parts])

    def head_norm(name: str) -> torch.Tensor | None:
        return read(f"{attention}{name}.weight") if config.head_norms else None

    # Part of a sum: its bias is added once.
    has_output_bias = config.output_bias and shard.rank == 0
    return _Layer(
        attention_norm=read(f"{prefix}input_layernorm.weight"),
        qkv=Linear(qkv("weight"), qkv("bias") if config.qkv_bias else None),
        query_norm=head_norm("q_norm"),
        key_norm=head_norm("k_norm"),
        output=Linear(
            read(f"{attention}o_proj.weight", columns=queries),
            read(f"{attention}o_proj.bias") if has_output_bias else None,
        ),
        mlp_norm=read(f"{prefix}post_attention_layernorm.weight"),
        mlp=read_mlp(config, read, index, shard),
        key_scale=scales.get(f"{prefix}{_KEY_SCALE}", 1.0),
        value_scale=scales.get(f"{prefix}{_VALUE_SCALE}", 1.0),
    )


def tensor_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor the network has, by Hugging Face's names."""
    return dict(_tensor_shapes(config))


def scale_names(config: ModelConfig) -> frozenset[str]:
    """What files may say of a cache of float8: what keys and values of a layer are divided by."""
    return frozenset(
        f"model.layers.{index}.{name}"
        for index in range(config.num_layers)
        for name in (_KEY_SCALE, _VALUE_SCALE)
    )


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
