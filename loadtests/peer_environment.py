"""Environments that peers run in, one each under `.peers/`: their packages never touch ours."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".peers"
_INSTALL_TIMEOUT_S = 600


class NotInstalled(Exception):
    """A peer's packages cannot be had here."""


class PeerEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        name: Of its folder.
        packages: What is installed, versions and all.
        module: Importing it proves that they work.
    """

    name: str
    packages: tuple[str, ...]
    module: str

    @property
    def home(self) -> Path:
        return PEERS / self.name

    @property
    def programs(self) -> Path:
        """The folder of its interpreter and its commands."""
        return self.home / "bin"

    @property
    def python(self) -> Path:
        return self.programs / "python"

    @property
    def installed(self) -> bool:
        return self._ready.exists() and self._ready.read_text() == " ".join(self.packages)

    @property
    def _ready(self) -> Path:
        return self.home / ".installed"

    def install(self) -> None:
        """Makes the environment unless it is there. Raises NotInstalled."""
        if self.installed:
            return
        run_install(self.packages[0], [sys.executable, "-m", "venv", "--clear", str(self.home)])
        pip = [str(self.python), "-m", "pip", "install", "--quiet", *self.packages]
        run_install(self.packages[0], pip)
        run_install(self.packages[0], [str(self.python), "-c", f"import {self.module}"])
        self._ready.write_text(" ".join(self.packages))


def run_install(what: str, command: Sequence[str], folder: Path | None = None) -> None:
    """Runs a step of an installation in `folder`. Raises NotInstalled, with its last words."""
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
            cwd=folder,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NotInstalled(f"{what}: {last}") from error
    except OSError as error:
        raise NotInstalled(f"{what}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{what}: not installed after {_INSTALL_TIMEOUT_S} s") from error
