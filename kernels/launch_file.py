"""Tuned launches on disk: one file for a GPU's name and Triton's version, readable and checked.

    {"gpu": "NVIDIA H100 80GB HBM3", "triton": "3.6.0", "launches": [
      {"kernel": "decode", "shape": {"head_dim": 128, "group": 4, ...},
       "launch": {"TILE": 64, "num_warps": 4, ...}}]}

What cannot be understood is told of and not used: the defaults are right on every GPU.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernels.launches import Key, Launch, Rule

DIRECTORY_VARIABLE = "WARMROUTE_KERNEL_CACHE"
_LOG = logging.getLogger(__name__)


class _NotUnderstood(ValueError):
    """The file, or an entry of it, is not what `write` writes; the message says how."""


def directory(environment: Mapping[str, str]) -> Path:
    """Where the files lie: the environment's $WARMROUTE_KERNEL_CACHE, or else below its home.

    Args:
        environment: Such as `os.environ`, which only who starts a process should read.
    """
    chosen = environment.get(DIRECTORY_VARIABLE)
    if chosen:
        return Path(chosen)
    caches = environment.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "warmroute" / "kernels"


def file_of(folder: Path, gpu: str, triton: str) -> Path:
    """The file for GPUs of that name (as torch tells it) and this version of Triton."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", gpu).strip("-")
    return folder / f"{plain}.triton-{triton}.json"


def read(
    path: Path, gpu: str, triton: str, kind: str, rules: Mapping[str, Rule]
) -> dict[Key, Launch]:
    """The launches of the file, for this kind of GPU; none if there is no file.

    A damaged file, and one for another GPU or Triton, is ignored with a warning that names it; so
    is an entry whose launch is not among its rule's candidates.
    """
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _LOG.warning("%s: ignored, as it cannot be read: %s", path, error)
        return {}
    if not isinstance(told, dict) or not isinstance(told.get("launches"), list):
        _LOG.warning("%s: ignored, as it is no file of tuned launches", path)
        return {}
    if (told.get("gpu"), told.get("triton")) != (gpu, triton):
        found = f"{told.get('gpu')}, Triton {told.get('triton')}"
        _LOG.warning("%s: ignored, as it is for %s; here: %s, %s", path, found, gpu, triton)
        return {}
    launches: dict[Key, Launch] = {}
    for place, entry in enumerate(told["launches"]):
        try:
            key, launch = _entry(entry, kind, rules)
        except _NotUnderstood as error:
            _LOG.warning("%s: entry %d ignored: %s", path, place, error)
        else:
            launches[key] = launch
    return launches


def _entry(entry: Any, kind: str, rules: Mapping[str, Rule]) -> tuple[Key, Launch]:
    if not isinstance(entry, dict):
        raise _NotUnderstood("no object")
    name, told, launch = entry.get("kernel"), entry.get("shape"), entry.get("launch")
    rule = rules.get(name) if isinstance(name, str) else None
    if rule is None:
        raise _NotUnderstood(f"no kernel {name!r}")
    if not isinstance(told, dict) or set(told) != set(rule.fields):
        raise _NotUnderstood(f"the shape of {name} has {', '.join(rule.fields)}")
    shape: list[Any] = [told[field] for field in rule.fields]
    for (field, wanted), value in zip(rule.fields.items(), shape, strict=True):
        if type(value) is not wanted or (wanted is int and value <= 0):
            raise _NotUnderstood(f"{field} is {value!r}")
    if launch not in rule.candidates(kind, *shape):
        raise _NotUnderstood(f"{name} {told}: {launch} is none of its candidates")
    return rule.key(kind, *shape), launch


def write(
    path: Path, gpu: str, triton: str, launches: Mapping[Key, Launch], rules: Mapping[str, Rule]
) -> None:
    """Puts the file in place at once: who reads it meanwhile sees the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    entries = [
        {
            "kernel": kernel,
            "shape": dict(zip(rules[str(kernel)].fields, shape, strict=True)),
            "launch": dict(launch),
        }
        for (kernel, _, *shape), launch in sorted(launches.items(), key=lambda one: str(one[0]))
    ]
    lines = ",\n".join(json.dumps(one) for one in entries)
    head = f'{{"gpu": {json.dumps(gpu)}, "triton": {json.dumps(triton)}, "launches": ['
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(f"{head}\n{lines}\n]}}\n")
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
