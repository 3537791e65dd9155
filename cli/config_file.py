"""Reads a YAML configuration into its struct: `${ENV}` expanded, errors with path and field."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from replica.config import ReplicaConfig
from router.config import RouterConfig, reject_repeats

T = TypeVar("T")

# ${NAME} or ${NAME:-default}
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class ConfigError(Exception):
    """A configuration that cannot be used; the message names the file and the field."""


class UpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A router and its replicas on one machine, for `warmroute up`."""

    router: RouterConfig
    replicas: list[ReplicaConfig]

    def __post_init__(self) -> None:
        reject_repeats("replicas: id", [replica.id for replica in self.replicas])


def load_router(path: Path) -> RouterConfig:
    """A router's file, or the `router` section of an `up` file. Raises ConfigError."""
    content = _read(path)
    if _is_up(content):
        return _convert(path, content, UpConfig).router
    return _convert(path, content, RouterConfig)


def load_replica(path: Path, replica_id: str | None = None) -> ReplicaConfig:
    """A replica's file, or the replica `replica_id` of an `up` file. Raises ConfigError."""
    content = _read(path)
    if not _is_up(content):
        replica = _convert(path, content, ReplicaConfig)
        if replica_id not in (None, replica.id):
            raise ConfigError(f"{path}: is replica {replica.id!r}, not {replica_id!r}")
        return replica
    replicas = {replica.id: replica for replica in _convert(path, content, UpConfig).replicas}
    if replica_id is None and len(replicas) == 1:
        return next(iter(replicas.values()))
    if replica_id not in replicas:
        known = ", ".join(replicas)
        raise ConfigError(f"{path}: name one of its replicas with --id: {known}")
    return replicas[replica_id]


def load_up(path: Path) -> UpConfig:
    """Raises ConfigError."""
    return _convert(path, _read(path), UpConfig)


def load_any(path: Path) -> UpConfig | RouterConfig | ReplicaConfig:
    """Whichever of the three the file is, by its top-level keys. Raises ConfigError."""
    content = _read(path)
    if _is_up(content):
        return _convert(path, content, UpConfig)
    if isinstance(content, Mapping) and "models" in content:
        return _convert(path, content, RouterConfig)
    return _convert(path, content, ReplicaConfig)


def _is_up(content: Any) -> bool:
    return isinstance(content, Mapping) and "router" in content


def _read(path: Path) -> Any:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: {reason}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path}: not YAML: {problem}") from error
    if isinstance(content, Mapping):
        # Top-level keys that start so hold anchors for use below, and mean nothing themselves.
        content = {key: value for key, value in content.items() if not str(key).startswith("x-")}
    return _expand(content, path, "$")


def _expand(value: Any, path: Path, field: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _expand(item, path, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path, f"{field}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def look_up(reference: re.Match[str]) -> str:
        name, default = reference.groups()
        found = os.environ.get(name, default)
        if found is None:
            raise ConfigError(f"{path}: environment variable {name} is not set - at `{field}`")
        return found

    expanded = _REFERENCE.sub(look_up, value)
    # A value that is nothing but one reference may be a number or a boolean.
    return yaml.safe_load(expanded) if _REFERENCE.fullmatch(value) else expanded


def _convert(path: Path, content: Any, struct: type[T]) -> T:
    try:
        return msgspec.convert(content, struct)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
