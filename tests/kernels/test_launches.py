"""Launches: a dictionary in memory, a file on disk believed as far as it makes sense."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import launch_file, launches
from kernels.launch_file import DIRECTORY_VARIABLE, directory, file_of, read, write
from kernels.launches import Launch, Rule
from kernels.operations import operations

GPU, TRITON, KIND = "NVIDIA H100 80GB HBM3", "3.6.0", "sm_90"
DEFAULT, WIDE = {"TILE": 64, "num_warps": 4}, {"TILE": 128, "num_warps": 8}


def default(kind: str, width: int, few: bool) -> Launch:
    return DEFAULT


def alternatives(kind: str, width: int, few: bool) -> list[Launch]:
    return [WIDE, DEFAULT] if few else [WIDE]


RULE = Rule("matmul", {"width": int, "few": bool}, default, alternatives)
RULES = {"matmul": RULE}
KEY = RULE.key(KIND, 256, True)


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    with launches.using({}):
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return file_of(tmp_path / "new" / "kernels", GPU, TRITON)


def reading(path: Path) -> dict[launches.Key, Launch]:
    return read(path, GPU, TRITON, KIND, RULES)


def test_a_launch_is_the_tuned_one_or_the_default() -> None:
    launches.use({KEY: WIDE})
    assert RULE.launch(KIND, 256, True) == WIDE
    assert RULE.launch(KIND, 256, False) == DEFAULT
    assert RULE.launch("sm_80", 256, True) == DEFAULT


def test_a_block_of_other_launches_ends() -> None:
    launches.use({KEY: WIDE})
    with launches.using({}):
        assert RULE.launch(KIND, 256, True) == DEFAULT
    assert RULE.launch(KIND, 256, True) == WIDE


def test_candidates_begin_with_the_default_and_repeat_nothing() -> None:
    assert RULE.candidates(KIND, 256, True) == [DEFAULT, WIDE]


def test_what_is_written_is_read_again(file: Path) -> None:
    assert reading(file) == {}
    written = {KEY: WIDE, RULE.key(KIND, 64, False): DEFAULT}
    write(file, GPU, TRITON, written, RULES)
    assert reading(file) == written
    write(file, GPU, TRITON, {}, RULES)
    assert reading(file) == {}
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, GPU, TRITON, {KEY: WIDE}, RULES)

    def full(source: str, target: str) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(launch_file.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write(file, GPU, TRITON, {}, RULES)
    assert reading(file) == {KEY: WIDE}
    assert [one.name for one in file.parent.iterdir()] == [file.name]


ENTRY: dict[str, Any] = {"kernel": "matmul", "shape": {"width": 256, "few": True}, "launch": WIDE}


def content(**changes: Any) -> bytes:
    whole = {"gpu": GPU, "triton": TRITON, "launches": [ENTRY]} | changes
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (b"", "cannot be read"),
        (content()[:-9], "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "no file of tuned launches"),
        (b'{"launches": 3}', "no file of tuned launches"),
        (content(gpu="NVIDIA A100"), "for NVIDIA A100, Triton 3.6.0; here: NVIDIA H100"),
        (content(triton="3.9.0"), "Triton 3.9.0; here"),
    ],
    ids=["empty", "cut", "no-text", "no-object", "no-list", "other-gpu", "other-triton"],
)
def test_a_file_that_makes_no_sense_is_named_and_ignored(
    damaged: bytes, why: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(damaged)
    assert reading(file) == {}
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert str(file) in said.getMessage()
    assert why in said.getMessage()


def test_a_file_that_is_a_directory_is_named_and_ignored(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.mkdir(parents=True)
    assert reading(file) == {}
    assert str(file) in caplog.text


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (7, "no object"),
        (ENTRY | {"kernel": "other"}, "no kernel 'other'"),
        (ENTRY | {"kernel": ["matmul"]}, "no kernel ['matmul']"),
        (ENTRY | {"shape": {"width": 256}}, "has width, few"),
        (ENTRY | {"shape": {"width": 256, "few": 1}}, "few is 1"),
        (ENTRY | {"shape": {"width": True, "few": True}}, "width is True"),
        (ENTRY | {"shape": {"width": 0, "few": True}}, "width is 0"),
        (ENTRY | {"launch": {"TILE": 4096, "num_warps": 4}}, "none of its candidates"),
        (ENTRY | {"launch": None}, "none of its candidates"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_an_entry_that_makes_no_sense_is_told_of_and_others_are_used(
    entry: Any, why: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(content(launches=[entry, ENTRY]))
    assert reading(file) == {KEY: WIDE}
    (said,) = caplog.records
    assert f"{file}: entry 0 ignored: " in said.getMessage()
    assert why in said.getMessage()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Path.home() / ".cache/warmroute/kernels"),
        ({"XDG_CACHE_HOME": "/caches"}, Path("/caches/warmroute/kernels")),
        ({"XDG_CACHE_HOME": "/caches", DIRECTORY_VARIABLE: "/mine"}, Path("/mine")),
    ],
    ids=["home", "caches", "chosen"],
)
def test_where_the_files_lie(environment: dict[str, str], expected: Path) -> None:
    assert directory(environment) == expected


def test_a_files_name_tells_gpu_and_triton() -> None:
    assert file_of(Path("k"), "AMD Instinct MI300X (gfx942)", "3.9.0") == Path(
        "k/AMD-Instinct-MI300X-gfx942.triton-3.9.0.json"
    )


def test_operations_on_a_gpu_use_what_was_tuned_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton

    from kernels.triton_ops.launch_rules import DECODE, RULES

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    shape = (2, 2, 128, 16, 4)
    other = DECODE.candidates(KIND, *shape)[1]
    tuned = {DECODE.key(KIND, *shape): other}
    write(file_of(tmp_path, GPU, triton.__version__), GPU, triton.__version__, tuned, RULES)
    gpu = torch.device("cuda:0")
    operations("triton", gpu)
    assert DECODE.launch(KIND, *shape) != other
    operations("triton", gpu, tmp_path)
    assert DECODE.launch(KIND, *shape) == other
