"""A network of its own for a benchmark: some peers try to reach the world when they start."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from loadtests.provenance import ROOT


def isolate(module: str, arguments: Sequence[str]) -> None:
    """Becomes `python -m module arguments` with only loopback; returns where that is denied."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    if unshare is None or ip is None:
        return
    up = f"{ip} link set lo up"
    if subprocess.run([unshare, "-n", "sh", "-c", up], capture_output=True).returncode:
        return
    again = [sys.executable, "-m", module, *arguments]
    os.environ["PYTHONPATH"] = str(ROOT)
    os.execv(unshare, [unshare, "-n", "sh", "-c", f'{up} && exec "$@"', "sh", *again])
