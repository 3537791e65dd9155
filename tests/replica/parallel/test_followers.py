"""Rank 0 and its followers' processes, without a model: agreeing, sending, failing, ending."""

import os
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from replica.core.plan import SamplingParams, SequenceSlice, StepPlan
from replica.parallel.channel import Run, encode
from replica.parallel.followers import Followers
from tests.support.fake_engine import make_config

FOLLOWER = """
import os, socket, sys, msgspec
from replica.parallel.channel import *
from replica.parallel.channel import decode_to_follower
start = msgspec.json.decode(sys.stdin.readline(), type=FollowerStart)
channel = Channel(socket.socket(fileno=start.channel))
send = lambda message: channel.send(encode(message))
receive = lambda: decode_to_follower(channel.receive())
rank = start.rank
exec(sys.argv[1])
"""
# Value by value, as in loading; then a plan, whose content comes back as a value.
SERVE = """
send(Value(100 - rank))
assert receive() == Agreed(97)
slice = receive().plan.slices[0]
send(Value(sum(slice.token_ids) + slice.sampling.seed % 2**32))
receive()
sys.stdin.read()
"""


@dataclass
class Started:
    followers: Followers
    ended: "queue.Queue[str]"


@contextmanager
def followers(code: str, size: int = 2) -> Iterator[Started]:
    config = make_config(engine={"tensor_parallel": size})
    ended: queue.Queue[str] = queue.Queue()
    some = Followers(config, 1, command=(sys.executable, "-c", FOLLOWER, code), on_end=ended.put)
    try:
        yield Started(some, ended)
    finally:
        some.close()
    for pid in some.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_all_agree_on_the_smallest_value_and_get_every_plan_whole() -> None:
    one = SequenceSlice(
        sequence_id=1,
        token_ids=list(range(200_000)),
        start=0,
        block_table=list(range(12_500)),
        sampling=SamplingParams(seed=2**64 - 1, top_k=None),
    )
    with followers(SERVE, size=4) as started:
        assert started.followers.minimum(98) == 97
        started.followers.send(encode(Run(StepPlan(slices=[one]))))
        expected = sum(range(200_000)) + 2**32 - 1
        assert started.followers.minimum(2**60) == expected
        started.followers.check()
        assert started.ended.empty()


def test_a_follower_that_cannot_load_says_why_by_its_rank() -> None:
    cannot = "receive() if rank != 2 else send(CannotLoad('tensor x is missing')); sys.exit(1)"
    with followers(
        f"send(Value(0)); receive(); send(Value(0)) if rank != 2 else 0; {cannot}", 3
    ) as (started):
        assert started.followers.minimum(0) == 0
        message = r"^engine\.tensor_parallel: rank 2: tensor x is missing$"
        with pytest.raises(ValueError, match=message):
            started.followers.minimum(0)
        with pytest.raises(ValueError, match=message):
            started.followers.check()
        assert started.ended.empty()


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("os.kill(os.getpid(), 9)", "rank 1 ended: killed by signal 9"),
        ("send(Value(0)); receive(); sys.exit(2)", "rank 1 ended: exit code 2"),
        ("channel._connection.send(b'half'); os._exit(0)", "rank 1 ended: exit code 0"),
    ],
    ids=["at once", "after it agreed", "in the middle of a message"],
)
def test_a_follower_that_ends_without_a_word_is_told_at_once(code: str, line: str) -> None:
    with followers(code) as started:
        if "Value" in code:
            started.followers.minimum(0)
        assert started.ended.get(timeout=20) == line
        started.followers.wait_for_an_end(20)  # the watch is over: no waiting in vain
