"""A replica whose KV cache is float8: near one whose cache is not, and equal to itself."""

from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from kernels.kv_cache import FP8
from replica.core.plan import StepPlan
from replica.load_runner import load_runner
from replica.models.dtype import resolve_kv_cache_dtype
from tests.replica.test_weights import CACHE_SCHEME, edit_config
from tests.support.tiny_models import TINY_MODELS, Driver, save_tiny_model

BLOCK_SIZE = 8
COUNT = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("tiny")
    save_tiny_model(directory, **TINY_MODELS["grouped-query, untied"])
    return directory


def driver(directory: Path, kv_cache_dtype: str = "fp8") -> Driver:
    return Driver(
        load_runner(
            directory,
            dtype="float32",
            block_size=BLOCK_SIZE,
            num_blocks=100,
            kv_cache_dtype=kv_cache_dtype,
        )
    )


def prompt(length: int) -> list[int]:
    random = Random(length)
    return [random.randrange(512) for _ in range(length)]


class Watched:
    """A driver and the logits of its steps."""

    def __init__(self, drive: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drive = drive
        self.logits: list[torch.Tensor] = []
        forward = drive.runner._model.forward

        def kept(*arguments: object) -> torch.Tensor:
            self.logits.append(forward(*arguments).clone())
            return self.logits[-1]

        monkeypatch.setattr(drive.runner._model, "forward", kept)


def step(drive: Driver, text: list[int], table: list[int], start: int = 0) -> None:
    drive.runner.run(StepPlan(slices=[drive.slice(text, start, table)]))


def test_a_block_takes_a_quarter_of_what_fp32_takes(directory: Path) -> None:
    plain, narrow = driver(directory, "auto").runner, driver(directory).runner
    assert {cache.dtype for cache in narrow.kv_caches} == {FP8}
    assert plain.kv_cache_bytes_per_block == 4 * narrow.kv_cache_bytes_per_block
    for runner in (plain, narrow):
        held = sum(cache.nbytes for cache in runner.kv_caches)
        assert held == (runner.num_blocks + 1) * runner.kv_cache_bytes_per_block


def test_logits_are_near_those_of_a_full_cache(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = prompt(40)
    said = []
    for kv_cache_dtype in ("auto", "fp8"):
        watched = Watched(driver(directory, kv_cache_dtype), monkeypatch)
        table = watched.drive.new_table(len(text))
        step(watched.drive, text[:-1], table)
        step(watched.drive, text, table, len(text) - 1)
        said.append(torch.cat(watched.logits))
    plain, narrow = said
    assert not torch.equal(plain, narrow)
    error = (plain - narrow).square().mean().sqrt() / plain.square().mean().sqrt()
    assert error < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cached_prefix_and_chunks_change_nothing(directory: Path, dtype: str) -> None:
    drive = Driver(
        load_runner(
            directory, dtype=dtype, block_size=BLOCK_SIZE, num_blocks=100, kv_cache_dtype="fp8"
        )
    )
    prefix = prompt(3 * BLOCK_SIZE)
    later = [*prefix, *prompt(5)]
    whole = drive.generate([later], COUNT)
    assert drive.generate([later], COUNT, chunk=7) == whole
    held = drive.new_table(len(prefix))
    step(drive, prefix, held)
    table = drive.new_table(len(later) + COUNT, held)
    assert drive.generate([later], COUNT, tables=[table], cached=len(prefix)) == whole


def test_scales_in_the_files_are_used_and_a_plain_cache_has_none(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, **TINY_MODELS["grouped-query, untied"])
    text = [prompt(30)]
    plain = driver(tmp_path, "auto").generate(text, COUNT)
    before = cached(tmp_path)
    edit_config(
        tmp_path,
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "config_groups": {},
                "kv_cache_scheme": CACHE_SCHEME,
            }
        },
    )
    file = tmp_path / "model.safetensors"
    scales = {"model.layers.0.self_attn.k_scale": torch.tensor([4.0], dtype=torch.bfloat16)}
    scales["model.layers.0.self_attn.v_scale"] = torch.tensor(0.5)
    save_file(load_file(file) | scales, file)
    assert driver(tmp_path, "auto").generate(text, COUNT) == plain
    keys, values = cached(tmp_path)[0]
    # Powers of two change exponents alone, as long as no number is subnormal.
    far = before[0][0].abs() > 0.1
    assert torch.equal(keys[far], before[0][0][far] / 4)
    assert torch.equal(values[values.abs() < 448], before[0][1][values.abs() < 448] * 2)
    assert values.abs().max() > 0
    # The scales are multiplied again: a second layer sees about the same.
    torch.testing.assert_close(cached(tmp_path)[1], before[1], rtol=0.3, atol=0.3)


def cached(directory: Path) -> list[torch.Tensor]:
    """What each layer keeps of a prompt of one block."""
    drive = driver(directory)
    table = drive.new_table(BLOCK_SIZE)
    step(drive, prompt(BLOCK_SIZE), table)
    return [cache[:, table[0]].float() for cache in drive.runner.kv_caches]


def test_a_format_is_what_its_name_says() -> None:
    assert resolve_kv_cache_dtype("auto", torch.bfloat16) is torch.bfloat16
    assert resolve_kv_cache_dtype("fp8", torch.bfloat16) is FP8
    with pytest.raises(ValueError, match="kv_cache_dtype 'int8': expected one of auto, fp8"):
        resolve_kv_cache_dtype("int8", torch.bfloat16)
