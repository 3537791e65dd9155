"""A whole replica as processes, with the byte model: `python -m tests.support.fake_replica CONFIG`.

    python -m tests.support.fake_replica '<ReplicaConfig as JSON>'           the replica
    python -m tests.support.fake_replica --engine                            its engine process

The engine loads when the file that `model.path` names exists (its content is ignored; "bad" in it
is a broken model), and crashes on the token of CRASH.
"""

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from replica.api.context import ServedModel
from replica.app import serve
from replica.config import ReplicaConfig
from replica.core.plan import SamplingParams
from replica.engine.process import Progress, main
from tests.support.byte_model import TEMPLATE, VOCABULARY, ByteTokenizer, echo
from tests.support.fake_runner import FakeRunner

CRASH = "\x07"
_COMMAND = (sys.executable, "-m", "tests.support.fake_replica", "--engine")


def _next_token(history: Sequence[int], sampling: SamplingParams) -> int:
    if ord(CRASH) in history:
        raise RuntimeError("the device fell off the bus")
    time.sleep(0.001)
    return echo(history, sampling)


def _build_runner(config: ReplicaConfig, progress: Progress) -> FakeRunner:
    print(f"engine pid {os.getpid()}", file=sys.stderr, flush=True)
    progress(0.5)
    file = Path(config.model.path)
    while not file.exists():
        time.sleep(0.01)
    if file.read_text() == "bad":
        raise ValueError(f"{file}: tensor model.norm.weight is missing")
    return FakeRunner(
        config.engine.block_size, _next_token, VOCABULARY, num_blocks=config.engine.told_blocks
    )


def _load_text(config: ReplicaConfig) -> ServedModel:
    return ServedModel(tokenizer=ByteTokenizer(), chat_template=TEMPLATE)


if __name__ == "__main__":
    if sys.argv[1] == "--engine":
        sys.exit(main(_build_runner))
    replica_config = msgspec.json.decode(sys.argv[1].encode(), type=ReplicaConfig)
    sys.exit(asyncio.run(serve(replica_config, engine_command=_COMMAND, load_text=_load_text)))
