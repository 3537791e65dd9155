"""The workloads by name, with what their parameters mean: for a command line."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple, cast

from loadtests.sim.workloads.conversations import Agents, Chat
from loadtests.sim.workloads.mixtures import Classes, Diurnal, Tenants
from loadtests.sim.workloads.shared import Documents, FewShot, Retrieval, Siblings, SystemPrompts
from loadtests.sim.workloads.traps import HotPrefix, MixedLengths, SharedFirstBlock
from loadtests.sim.workloads.workload import Workload, WorkloadError


class Entry(NamedTuple):
    """A kind of workload, and the defaults that its name stands for where they are not its own."""

    kind: type[Workload]
    defaults: Mapping[str, str]


WORKLOADS: Mapping[str, Entry] = {
    "chat": Entry(Chat, {}),
    "agents": Entry(Agents, {}),
    "system-prompts": Entry(SystemPrompts, {}),
    "documents": Entry(Documents, {}),
    "few-shot": Entry(FewShot, {}),
    "retrieval": Entry(Retrieval, {}),
    "siblings": Entry(Siblings, {}),
    "diurnal": Entry(Diurnal, {}),
    "tenants": Entry(Tenants, {}),
    "classes": Entry(Classes, {}),
    "trap-first-block": Entry(SharedFirstBlock, {}),
    "trap-hot-prefix": Entry(HotPrefix, {}),
    "trap-siblings": Entry(Siblings, {"siblings": "64"}),
    "trap-lengths": Entry(MixedLengths, {}),
}


class Parameter(NamedTuple):
    """What a command line shows of a parameter; the default as it would be written there."""

    name: str
    default: str
    doc: str


def build(name: str, values: Mapping[str, str] | None = None) -> Workload:
    """A workload by its name.

    Args:
        name: One of `WORKLOADS`.
        values: Parameters as they are written on a command line: numbers; for a workload inside
            another its name; for several, names with commas between.

    Raises:
        WorkloadError: No such workload or parameter, or a value that is none for it.
    """
    entry = _entry(name)
    texts = {**entry.defaults, **(values or {})}
    types = {field.name: field.type for field in fields(entry.kind)}
    for parameter in texts:
        if parameter not in types:
            known = ", ".join(types)
            raise WorkloadError(f"{name}: no parameter {parameter!r}; there are {known}")
    arguments = {
        parameter: _value(f"{name}.{parameter}", types[parameter], text)
        for parameter, text in texts.items()
    }
    return entry.kind(**arguments)


def summary(name: str) -> str:
    """What the workload is, in one line."""
    return (_entry(name).kind.__doc__ or "").partition("\n")[0]


def parameters(name: str) -> list[Parameter]:
    """The parameters of a workload in their order."""
    entry = _entry(name)
    return [
        Parameter(
            field.name,
            entry.defaults.get(field.name, _text(field.default)),
            field.metadata["doc"],
        )
        for field in fields(entry.kind)
    ]


def _entry(name: str) -> Entry:
    if name not in WORKLOADS:
        raise WorkloadError(f"no workload {name!r}; there are {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def _value(place: str, kind: object, text: str) -> Any:
    if kind is Workload:
        return build(text)
    if kind == tuple[Workload, ...]:
        return tuple(build(name) for name in text.split(","))
    convert = {int: int, float: float}[cast(type, kind)]
    try:
        return convert(text)
    except ValueError as error:
        raise WorkloadError(f"{place}: expected {convert.__name__}, got {text!r}") from error


def _text(default: object) -> str:
    if isinstance(default, Workload):
        return next(name for name, entry in WORKLOADS.items() if entry.kind is type(default))
    if isinstance(default, tuple):
        return ",".join(map(_text, default))
    return str(default)
