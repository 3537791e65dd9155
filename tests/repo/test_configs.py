"""Every shipped configuration loads as what it is."""

from pathlib import Path

import pytest

from cli.config_file import load_any
from router.config import RouterConfig
from router.core.policies import POLICIES

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_loads(path: Path) -> None:
    config = load_any(path)
    router = config if isinstance(config, RouterConfig) else getattr(config, "router", None)
    for model in router.models if router else ():
        assert model.policy.kind in POLICIES


def test_there_are_configs_to_load() -> None:
    assert CONFIGS
