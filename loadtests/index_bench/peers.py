"""Makes the environment that Dynamo's index runs in: `python -m loadtests.index_bench.peers`.

Its packages are its own, beside the few that reading a data set needs; it never touches ours.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
DYNAMO = "ai-dynamo-runtime==1.6.1"
DYNAMO_HOME = ROOT / ".peers/dynamo"
DYNAMO_PYTHON = DYNAMO_HOME / "bin/python"
_READY = DYNAMO_HOME / ".installed"
_INSTALL_TIMEOUT_S = 600


class NotInstalled(Exception):
    """A peer's packages cannot be had here."""


def dynamo_python() -> Path | None:
    """The interpreter of Dynamo's environment, if it was made."""
    return DYNAMO_PYTHON if _READY.exists() else None


def install_dynamo() -> Path:
    """Makes the environment unless it is there. Raises NotInstalled."""
    if _READY.exists() and _READY.read_text() == DYNAMO:
        return DYNAMO_PYTHON
    shared = [f"{name}=={version(name)}" for name in ("msgspec", "tokenizers")]
    try:
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(DYNAMO_HOME)],
            [str(DYNAMO_PYTHON), "-m", "pip", "install", "--quiet", DYNAMO, *shared],
            [str(DYNAMO_PYTHON), "-c", "import dynamo.llm"],
        ):
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S
            )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise NotInstalled(f"{DYNAMO}: {last}") from error
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{DYNAMO}: not installed after {_INSTALL_TIMEOUT_S} s") from error
    _READY.write_text(DYNAMO)
    return DYNAMO_PYTHON


if __name__ == "__main__":
    print(install_dynamo())
