"""The Dockerfile, compose.yaml and the container configs agree: sources, stages, mounts, ports."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ROUTERS = {name for name, service in SERVICES.items() if "router" in name}
REPLICAS = SERVICES.keys() - ROUTERS


@dataclass
class Stage:
    """One `FROM … AS name` and the instructions below it, as (keyword, rest)."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        return [rest for word, rest in self.instructions if word == keyword]


def dockerfile_stages() -> dict[str, Stage]:
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in joined.splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            current = stages[name] = Stage(base)
        elif current is not None:
            current.instructions.append((keyword, rest))
    return stages


STAGES = dockerfile_stages()


def mounted_config(service: str) -> dict[str, Any]:
    """The config a service mounts where its image's command looks for it."""
    kind = "router" if service in ROUTERS else "replica"
    suffix = f":/etc/warmroute/{kind}.yaml:ro"
    (mount,) = [m for m in SERVICES[service]["volumes"] if isinstance(m, str)]
    assert mount.endswith(suffix), mount
    return yaml.safe_load((ROOT / mount.removesuffix(suffix)).read_text())


def replicas_of(router: str) -> list[dict[str, Any]]:
    return [r for model in mounted_config(router)["models"] for r in model["replicas"]]


def lineage(stage: str) -> list[str]:
    """`stage` and the stages it is built on, the nearest first."""
    names = [stage]
    while STAGES[names[-1]].base in STAGES:
        names.append(STAGES[names[-1]].base)
    return names


@pytest.mark.parametrize("name", STAGES)
def test_every_copied_file_exists_and_is_not_ignored(name):
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for copy in STAGES[name].all("COPY"):
        words = [word for word in copy.split() if not word.startswith("--")]
        if origin := re.search(r"--from=(\S+)", copy):
            assert origin[1] in STAGES, copy
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), f"COPY {source}: no such file"
            assert f"!{source}" in ignored, f".dockerignore hides {source}"


def test_every_package_of_the_wheel_is_copied():
    text = (ROOT / "pyproject.toml").read_text()
    (packages,) = re.findall(r"^packages = (\[.*\])$", text, re.M)[:1]
    copied = " ".join(STAGES["wheel"].all("COPY"))
    assert all(f"{package}/" in copied for package in yaml.safe_load(packages))


@pytest.mark.parametrize("target", ["router", "replica", "replica-gpu"])
def test_an_image_runs_warmroute_as_an_ordinary_user_and_checks_its_health(target):
    stages = [STAGES[name] for name in lineage(target)]
    users = [user for stage in reversed(stages) for user in stage.all("USER")]
    assert users[-1] == "warmroute"
    assert [e for stage in stages for e in stage.all("ENTRYPOINT")] == ['["warmroute"]']
    (check,) = [h for stage in stages for h in stage.all("HEALTHCHECK")]
    port = 8000 if target == "router" else 8101
    assert f"'127.0.0.1', {port}," in check
    assert str(port) in " ".join(e for stage in stages for e in stage.all("EXPOSE")).split()


def test_the_router_image_takes_nothing_from_the_replica():
    stage = STAGES["router"]
    text = " ".join(rest for _, rest in stage.instructions)
    assert set(re.findall(r"from=([\w-]+)", text)) == {"router-dependencies", "wheel"}
    below = " ".join(
        rest for name in lineage("router-dependencies") for _, rest in STAGES[name].instructions
    )
    assert "torch" not in below
    assert "replica.txt" not in below


def test_torch_comes_from_pips_default_index_unless_told_otherwise():
    assert STAGES["replica-dependencies"].all("ARG") == ["TORCH_INDEX_URL="]
    assert "://" not in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_builds_a_stage_and_is_restarted_stopped_gently_and_checked(name):
    service = SERVICES[name]
    assert service["build"]["target"] in STAGES
    assert service["image"] == f"warmroute-{service['build']['target']}"
    assert service["restart"] == "unless-stopped"
    assert service["stop_grace_period"].endswith("s")
    assert service["healthcheck"]["test"][:3] == ["CMD", "python3", "-c"]
    compile(service["healthcheck"]["test"][3], name, "exec")
    assert f"'127.0.0.1', {mounted_config(name)['listen']['port']}," in str(service["healthcheck"])
    assert "start_period" in service["healthcheck"]


@pytest.mark.parametrize(
    ("profile", "members"),
    [
        ("cpu", {"router", "replica-0", "replica-1"}),
        ("gpu", {"gpu-router", "gpu-replica-0", "gpu-replica-1"}),
    ],
)
def test_a_profile_is_one_router_and_its_replicas(profile, members):
    assert {name for name in SERVICES if SERVICES[name]["profiles"] == [profile]} == members
    (router,) = members & ROUTERS
    depends_on = SERVICES[router]["depends_on"]
    assert depends_on.keys() == members - {router}
    assert all(d == {"condition": "service_healthy"} for d in depends_on.values())
    assert {urlsplit(r["url"]).hostname for r in replicas_of(router)} == members - {router}


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_the_published_ports_are_the_configs_and_on_loopback_only(router):
    config = mounted_config(router)
    listening = {config["listen"]["port"], config["admin"]["port"]}
    assert listening == {8000, 8001}
    assert set(SERVICES[router]["ports"]) == {f"127.0.0.1:{port}:{port}" for port in listening}
    assert config["listen"]["host"] == config["admin"]["host"] == "0.0.0.0"


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_a_router_finds_its_replicas_where_they_listen(router):
    (model,) = mounted_config(router)["models"]
    for entry in model["replicas"]:
        host = urlsplit(entry["url"]).hostname
        replica = mounted_config(host)
        assert entry["id"] == replica["id"] == host
        assert entry["url"] == f"http://{host}:{replica['listen']['port']}"
        assert replica["listen"]["host"] == "0.0.0.0"
        assert model["name"] == replica["model"]["name"]
        assert model["tokenizer"] == replica["model"]["path"]
        for section in ("kv_events", "load_reports"):
            for key, address in entry[section].items():
                bound = replica[section][key]
                assert bound == address.replace(f"//{host}:", "//*:"), f"{section}.{key}"


@pytest.mark.parametrize("name", sorted(REPLICAS))
def test_a_replicas_ports_are_exposed_and_not_published(name):
    config = mounted_config(name)
    exposed = " ".join(STAGES["replica"].all("EXPOSE")).split()
    addresses = [*config["kv_events"].values(), config["load_reports"]["endpoint"]]
    ports = [str(config["listen"]["port"]), *(address.rpartition(":")[2] for address in addresses)]
    assert sorted(ports) == sorted(exposed)
    assert "ports" not in SERVICES[name]


def test_every_gpu_replica_has_a_device_of_its_own_and_the_model():
    devices = []
    for name in sorted(REPLICAS):
        config = mounted_config(name)
        if config["engine"]["device"] == "cpu":
            assert "deploy" not in SERVICES[name]
            continue
        (device,) = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
        devices += device["device_ids"]
        (mount,) = [m for m in SERVICES[name]["volumes"] if not isinstance(m, str)]
        assert (mount["target"], mount["read_only"]) == (config["model"]["path"], True)
        assert "${MODEL_DIR" in mount["source"]
    assert devices == ["0", "1"]


def test_every_container_config_is_used():
    shipped = {path.name for path in (ROOT / "configs").glob("docker-*.yaml")}
    mounts = " ".join(m for s in SERVICES.values() for m in s["volumes"] if isinstance(m, str))
    assert shipped == set(re.findall(r"docker-[\w-]+\.yaml", mounts))
