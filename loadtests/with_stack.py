"""Runs a command against a stack: the one that answers already, or one started for the time.

`python -m loadtests.with_stack --url URL --start CONFIG -- COMMAND ...` exits as COMMAND does.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from loadtests.stack import StackFailed, answers, child_stack, up_command

LOG = Path(".run/stack.log")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--start", type=Path, required=True, help="what to start, if need be")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        with ExitStack() as stack:
            if not answers(options.url):
                _tell(f"starting {options.start}; its log is {LOG}")
                stack.enter_context(
                    child_stack(up_command(options.start), options.url, LOG, _tell_end)
                )
            return subprocess.run(options.command).returncode
    except StackFailed as error:
        _tell(str(error))
        return 1


def _tell(text: str) -> None:
    print(f"with_stack: {text}", file=sys.stderr, flush=True)


def _tell_end(text: str) -> None:
    """Of the progress only the end is worth a line: waiting would be many."""
    if not text.startswith("waiting"):
        _tell(text)


if __name__ == "__main__":
    sys.exit(main())
