"""Where a replica's KV events come from: every address is checked, for every rank."""

import msgspec
import pytest

from router.config import KvEventsConfig

GOOD = {"endpoint": "tcp://10.0.0.1:5557", "replay": "tcp://10.0.0.1:5657"}


def test_one_rank_and_no_snapshot_socket_are_the_default() -> None:
    config = msgspec.convert(GOOD, KvEventsConfig)
    assert (config.ranks, config.snapshot) == (1, None)
    assert msgspec.convert({"endpoint": "ipc:///run/kv"}, KvEventsConfig).ranks == 1


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"snapshot": "5757"}, "snapshot must look like"),
        ({"snapshot": "tcp://*:5757"}, "snapshot must look like"),
        ({"replay": "tcp://a b:5757"}, "replay must look like"),
        ({"replay": "tcp://ho/st:5757"}, "replay must look like"),
        ({"replay": "ipc://" + "x" * 108}, "replay must look like"),
        ({"ranks": 0}, "ranks"),
        ({"ranks": 2, "replay": "ipc:///run/replay"}, "replay must be tcp://host:port for 2 ranks"),
        ({"ranks": 8, "snapshot": "tcp://h:65530"}, "snapshot: no port is left for rank 7"),
    ],
)
def test_what_cannot_be_connected_to_is_named(fields: dict[str, object], what: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=what):
        msgspec.convert({**GOOD, **fields}, KvEventsConfig)
    msgspec.convert({**GOOD, "ranks": 8, "snapshot": "tcp://h:65528"}, KvEventsConfig)
    msgspec.convert({"endpoint": "tcp://[fe80::1]:5557"}, KvEventsConfig)
