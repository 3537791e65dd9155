"""The docs say what is there: commands run, metrics exist, modules are named."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import make_parser
from router.control.admin import FleetCollector
from router.core.admission import Admission
from router.metrics import RouterMetrics

ROOT = Path(__file__).parents[2]
PACKAGES = ["cli", "kernels", "loadtests", "prompt", "protocol", "replica", "router"]
README_COMMANDS = [
    command.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for command in block.replace("\\\n", " ").splitlines()
    if command.partition("#")[0].strip()
]


@pytest.mark.parametrize("command", [c for c in README_COMMANDS if c.startswith("make ")])
def test_the_readmes_make_targets_exist(command: str) -> None:
    # -n prints what would be done: an unknown target is an error.
    made = subprocess.run(
        ["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("command", [c for c in README_COMMANDS if c.startswith("warmroute ")])
def test_the_readmes_commands_are_understood_and_their_files_are_there(command: str) -> None:
    arguments = shlex.split(command)[1:]
    make_parser().parse_args(arguments)
    for argument in arguments:
        if argument.endswith(".yaml"):
            assert (ROOT / argument).exists()


def test_the_readme_has_commands_of_each_kind() -> None:
    assert {command.split()[0] for command in README_COMMANDS} >= {"make", "warmroute", "curl"}


def test_every_metric_is_documented_and_every_documented_metric_exists() -> None:
    metrics = RouterMetrics()
    metrics.registry.register(FleetCollector({}, Admission()))
    exported = {family.name for family in metrics.registry.collect()}
    documented = set(
        re.findall(r"^\| `(warmroute_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.M)
    )
    assert exported == documented


def first_sentence(file: Path) -> str:
    """What a module says it is: the first line of its docstring."""
    return file.read_text().splitlines()[0].strip('"')


def test_the_architecture_has_one_line_for_every_module() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    lines = [
        f"- `{file.relative_to(ROOT)}`: {first_sentence(file)}"
        for package in PACKAGES
        for file in sorted((ROOT / package).rglob("*.py"))
        if file.stem != "__init__"
    ]
    missing = [line for line in lines if line not in text]
    assert not missing, "docs/architecture.md should say:\n" + "\n".join(missing)
    assert text.count("\n- `") == len(lines), (
        "docs/architecture.md names modules that are not there"
    )


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_files_are_short_and_open_with_what_they_are(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        lines = file.read_text().splitlines()
        assert len(lines) <= 400, f"{file} has {len(lines)} lines"
        assert not lines or lines[0].startswith('"""'), f"{file} does not say what it is"


def test_nothing_names_a_machine_or_a_registry() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    forbidden = re.compile(r"/work/|/root/|pypi\.org|files\.pythonhosted|download\.pytorch")
    for name in tracked:
        path = ROOT / name
        if path != Path(__file__) and path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ""}:
            found = forbidden.search(path.read_text(errors="replace")) if path.exists() else None
            assert found is None, f"{name} names {found.group() if found else ''}"


def test_the_version_is_not_one_that_transformers_takes_for_its_own_kernels_package() -> None:
    from importlib.metadata import version

    assert not version("warmroute").startswith("0.18."), sys.path
