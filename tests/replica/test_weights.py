"""A model's files are read whole or refused with one line that names what is wrong."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from kernels.operations import operations
from prompt.errors import ModelFileError
from replica.models.dtype import resolve_dtype
from replica.models.errors import UnsupportedModel, WrongTensor
from replica.runner import ModelRunner
from replica.weights.load import load_model, open_source
from tests.support.tiny_gguf import write_gguf
from tests.support.tiny_models import TINY_MODELS, Driver, save_tiny_model

SHAPE = TINY_MODELS["grouped-query, untied"]
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path, **SHAPE)
    return tmp_path


def load(path: Path) -> ModelRunner:
    return ModelRunner.load(path, dtype="float32", num_blocks=20)


Tensors = dict[str, torch.Tensor]


def edit_tensors(directory: Path, edit: Callable[[Tensors], object]) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def edit_config(directory: Path, change: dict[str, Any]) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(K_PROJ), rf"{K_PROJ} \[16, 64\] is missing"),
        (
            lambda t: t.update({K_PROJ: torch.zeros(16, 63)}),
            rf"{K_PROJ} has shape \[16, 63\], where \[16, 64\] is expected",
        ),
        (
            lambda t: t.update({"model.layers.1.extra": torch.zeros(2)}),
            r"model.layers.1.extra \[2\] is not part of this model",
        ),
    ],
    ids=["missing", "wrong shape", "extra"],
)
def test_a_wrong_tensor_is_named_with_its_shapes(
    directory: Path, edit: Callable[[Tensors], object], message: str
) -> None:
    edit_tensors(directory, edit)
    with pytest.raises(WrongTensor, match=message):
        load(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported"),
        ({"architectures": None}, "architectures is"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"sliding_window": 128}, "sliding_window 128"),
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["chunked_attention"] * 3,
            },
            "layer_types",
        ),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": "wide"},
            "sliding_window is 'wide'",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor is None"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers is 'many'"),
        ({"num_key_value_heads": 3}, "8 attention heads cannot share 3 KV heads"),
    ],
    ids=str,
)
def test_what_we_cannot_compute_is_refused_by_name(
    directory: Path, change: dict[str, Any], message: str
) -> None:
    edit_config(directory, change)
    with pytest.raises(UnsupportedModel, match=message):
        load(directory)


def test_shards_equal_one_file(directory: Path) -> None:
    whole = Driver(load(directory)).generate([PROMPT], 8)
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    weight_map = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(names)}
    for part in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == part}, directory / part)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()
    assert Driver(load(directory)).generate([PROMPT], 8) == whole


def test_a_missing_file_is_named(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"neither model\.safetensors nor"):
        load(directory)
    with pytest.raises(ModelFileError, match="neither a Hugging Face directory nor"):
        load(directory / "config.json")


LLAMA3 = TINY_MODELS["nine heads on three, tied, llama3 rope, own head_dim"]
MIXTRAL = TINY_MODELS["mixtral, two of four experts"]
# llama.cpp knows no others: all layers have experts, whose probabilities are made to add up to 1.
QWEN3_MOE = TINY_MODELS["qwen3 moe, three of eight experts, one dense layer"] | {
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(SHAPE, id="llama"),
        pytest.param(LLAMA3, id="llama 3.1"),
        pytest.param(TINY_MODELS["mistral without a window"], id="mistral"),
        pytest.param(TINY_MODELS["qwen2, tied"], id="qwen2"),
        pytest.param(TINY_MODELS["qwen3, own head_dim"], id="qwen3"),
        pytest.param(MIXTRAL, id="mixtral"),
        pytest.param(QWEN3_MOE, id="qwen3 moe"),
    ],
)
def test_a_gguf_file_gives_the_tokens_of_the_directory_it_came_from(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    directory = tmp_path / "huggingface"
    save_tiny_model(directory, **shape)
    write_gguf(directory, tmp_path / "tiny.gguf")
    expected = Driver(load(directory)).generate([PROMPT], 32)
    assert Driver(load(tmp_path / "tiny.gguf")).generate([PROMPT], 32) == expected


def test_a_mixtral_file_may_have_a_tensor_for_each_expert(tmp_path: Path) -> None:
    directory = tmp_path / "huggingface"
    save_tiny_model(directory, **MIXTRAL)
    write_gguf(directory, tmp_path / "tiny.gguf", merged_experts=False)
    expected = Driver(load(directory)).generate([PROMPT], 32)
    assert Driver(load(tmp_path / "tiny.gguf")).generate([PROMPT], 32) == expected


def test_of_merged_experts_only_the_one_asked_for_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "huggingface"
    save_tiny_model(directory, **MIXTRAL)
    write_gguf(directory, tmp_path / "tiny.gguf", quantisation="Q8_0")
    source = open_source(tmp_path / "tiny.gguf")
    decoded: list[int] = []
    decode = gguf.quants.dequantize

    def counted(data: Any, kind: Any) -> Any:
        values = decode(data, kind)
        decoded.append(values.size)
        return values

    monkeypatch.setattr(gguf.quants, "dequantize", counted)
    shapes = source.shapes()
    names = [name for name in shapes if ".experts." in name]
    assert len(names) == 3 * 4 * 3  # layers, experts, matrices
    for name in names:
        assert source.read(name).shape == shapes[name]
    assert decoded == [torch.Size(shapes[name]).numel() for name in names]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"expert_used_count": 5}, "5 experts a token, but only 4"),
        ({"expert_used_count": 0}, "expert_used_count is 0"),
        ({"expert_shared_count": 1}, "expert_shared_count 1"),
        ({"expert_weights_norm": False}, "expert_weights_norm False"),
        ({"expert_weights_scale": 2.5}, "expert_weights_scale 2.5"),
        ({"expert_gating_func": gguf.ExpertGatingFuncType.SIGMOID}, "expert_gating_func 2"),
        ({"expert_count": 5}, r"gate\.weight has shape \[4, 64\], where \[5, 64\] is expected"),
        ({"expert_count": 3}, r"gate\.weight has shape \[4, 64\], where \[3, 64\] is expected"),
        ({"expert_count": 0}, r"mlp\.gate_proj\.weight \[96, 64\] is missing"),
        ({"expert_feed_forward_length": 40}, r"shape \[96, 64\], where \[40, 64\] is expected"),
    ],
    ids=str,
)
def test_experts_that_are_not_what_the_metadata_says_are_refused(
    metadata: dict[str, Any], message: str, tmp_path: Path
) -> None:
    directory = tmp_path / "huggingface"
    save_tiny_model(directory, **MIXTRAL)
    write_gguf(directory, tmp_path / "tiny.gguf", metadata=metadata)
    with pytest.raises((UnsupportedModel, WrongTensor), match=message):
        load(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("key", ["expert_count", "sliding_window"])
def test_what_a_dense_gguf_file_may_not_have_is_refused(key: str, tmp_path: Path) -> None:
    directory = tmp_path / "huggingface"
    save_tiny_model(directory, **TINY_MODELS["qwen3, own head_dim"])
    write_gguf(directory, tmp_path / "tiny.gguf", metadata={key: 4})
    with pytest.raises(UnsupportedModel, match=f"{key} 4 is not supported"):
        load(tmp_path / "tiny.gguf")


@pytest.mark.parametrize(("kind", "tolerance"), [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2)])
def test_quantised_tensors_come_back_near_what_they_were(
    directory: Path, tmp_path: Path, kind: str, tolerance: float
) -> None:
    write_gguf(directory, tmp_path / "tiny.gguf", quantisation=kind)
    plain, quantised = open_source(directory), open_source(tmp_path / "tiny.gguf")
    assert plain.shapes() == quantised.shapes()
    for name in plain.shapes():
        torch.testing.assert_close(
            quantised.read(name), plain.read(name), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "not a GGUF file"),
        (lambda data: b"PK" + data, "not a GGUF file"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 1"),
        (lambda data: data[:200], "cut off"),
        (lambda data: data[:-100], "cut off"),
    ],
    ids=["empty", "another format", "old version", "cut in the head", "cut in a tensor"],
)
def test_a_damaged_gguf_file_is_refused(
    directory: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(directory, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelFileError, match=message):
        load(file)


def test_loading_tells_how_far_it_is(directory: Path) -> None:
    told: list[tuple[float, str]] = []
    load_model(
        open_source(directory),
        dtype=torch.float32,
        device=torch.device("cpu"),
        ops=operations("torch", torch.device("cpu")),
        progress=lambda fraction, message: told.append((fraction, message)),
    )
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert told[-1] == (1.0, "weights are loaded")


def test_a_dtype_is_what_its_name_says_and_auto_picks_one() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("float16", cpu) is torch.float16
    assert resolve_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    assert resolve_dtype("auto", torch.device("cuda")) is torch.bfloat16
    with pytest.raises(ValueError, match="dtype 'int3'"):
        resolve_dtype("int3", cpu)
