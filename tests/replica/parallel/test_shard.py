"""Who gets what of a model, and what cannot be divided."""

from dataclasses import dataclass

import pytest
import torch

from replica.models.config import ExpertNames, ExpertsConfig, ModelConfig, RopeConfig
from replica.parallel.shard import WHOLE, Shard, columns_of, part_of, share_of


@dataclass
class Rank:
    rank: int
    size: int


def rank(number: int, size: int) -> Shard:
    return Rank(number, size)  # type: ignore[return-value]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [8, 9, 509, 128_256])
def test_parts_are_the_whole_in_order_and_nearly_alike(count: int, size: int) -> None:
    parts = [part_of(count, rank(number, size)) for number in range(size)]
    assert [one for part in parts for one in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("count", [8, 9, 13, 509, 128_256])
def test_columns_cover_everything_with_as_many_on_each_rank(count: int, size: int) -> None:
    parts = [columns_of(count, number, size) for number in range(size)]
    assert {len(part) for part in parts} == {-(-count // size)}
    assert {one for part in parts for one in part} == set(range(count))


def config(heads: int, kv_heads: int, experts: int | None = None) -> ModelConfig:
    names = ExpertNames(router="r", experts="e", gate="g", up="u", down="d")
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=10,
        hidden_size=8 * heads,
        intermediate_size=64,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=8,
        norm_eps=1e-5,
        rope=RopeConfig(theta=10000.0),
        max_model_len=16,
        tied_embeddings=False,
        windows=(None,),
        experts=None
        if experts is None
        else ExpertsConfig(
            count=experts,
            per_token=1,
            intermediate_size=8,
            renormalise=True,
            layers=(True,),
            names=names,
        ),
    )


def test_a_share_has_its_part_of_the_heads() -> None:
    share = share_of(config(64, 8), rank(3, 4))
    assert (share.num_heads, share.num_kv_heads, share.head_dim) == (16, 2, 8)
    assert share_of(config(9, 3), WHOLE) == config(9, 3)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (config(9, 3), 2, r"2 ranks cannot share 3 KV heads \(of 9 attention heads\) evenly"),
        (config(64, 8), 16, "16 ranks cannot share 8 KV heads"),
        (config(8, 8, experts=3), 4, "3 experts are too few for 4 ranks"),
    ],
    ids=["uneven", "too many ranks", "too few experts"],
)
def test_what_cannot_be_divided_is_told_by_the_fields_name(
    model: ModelConfig, size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^engine\.tensor_parallel: {message}"):
        share_of(model, rank(0, size))


def test_a_whole_changes_nothing() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert WHOLE.all_reduce(x) is x
    assert WHOLE.gather_columns(x, 3) is x
    assert WHOLE.minimum(7) == 7
