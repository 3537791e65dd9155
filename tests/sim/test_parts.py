"""The simulated loop, network and model: time nobody waits for, bytes that keep their order."""

import asyncio
from collections.abc import Callable, Iterator
from random import Random

import pytest

from tests.sim.asks import Ask, Asking
from tests.sim.faults import Faults
from tests.sim.loop import STARTS_AT_S, NothingLeft, SimLoop
from tests.sim.model import TOKENIZER, answer_to, text_of
from tests.sim.network import End, Network, Process
from tests.support.byte_model import END


class Keeps(asyncio.Protocol):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: list[Exception | None] = []
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, End)
        self.end = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False


@pytest.fixture
def pairs() -> Iterator[Callable[..., "Pair"]]:
    """Makes a pair, whose loop is closed in the end."""
    made: list[Pair] = []

    def make(**rates: float) -> Pair:
        made.append(Pair(Faults(**rates)))
        return made[-1]

    yield make
    for pair in made:
        pair.loop.close()


class Pair:
    """Two processes and a connection between them."""

    def __init__(self, faults: Faults) -> None:
        self.loop = SimLoop()
        self.network = Network(self.loop, Random(1))
        self.network.faults = faults
        self.near, self.far = Keeps(), Keeps()
        self.a, self.b = Process("a"), Process("b")
        self.network.start(self.a)
        self.network.start(self.b, lambda: self.far)
        self.loop.run_until_complete(self.loop.create_connection(lambda: self.near, "a.b", 1))

    def run(self, seconds: float = 10.0) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))


def test_an_hour_passes_at_once() -> None:
    loop = SimLoop()
    loop.run_until_complete(asyncio.sleep(3600.0))
    assert loop.time() == STARTS_AT_S + 3600.0
    loop.close()


def test_who_waits_for_what_never_happens_is_told() -> None:
    loop = SimLoop()
    with pytest.raises(NothingLeft):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_bytes_arrive_in_order_and_in_pieces(pairs: Callable[..., Pair]) -> None:
    pair = pairs(split=0.9, slow_packet=0.9)
    for number in range(200):
        pair.near.end.write(b"%d " % number)
    pair.run()
    assert pair.far.received == b"".join(b"%d " % number for number in range(200))


def test_a_frozen_process_reads_when_it_thaws_and_its_peer_is_held_up(
    pairs: Callable[..., Pair],
) -> None:
    pair = pairs()
    pair.b.frozen = True
    pair.near.end.write(b"x" * 10_000)
    pair.run()
    assert (pair.far.received, pair.near.paused) == (b"", True)
    pair.b.thaw()
    pair.run()
    assert (len(pair.far.received), pair.near.paused) == (10_000, False)


def test_nothing_comes_through_a_partition_before_it_heals(pairs: Callable[..., Pair]) -> None:
    pair = pairs()
    pair.network.part("a", "b", pair.loop.time() + 5.0)
    pair.near.end.write(b"late")
    pair.run(4.9)
    assert pair.far.received == b""
    pair.run(0.2)
    assert pair.far.received == b"late"


def test_a_killed_process_says_nothing_more_and_its_peer_hears_of_it(
    pairs: Callable[..., Pair],
) -> None:
    pair = pairs()
    pair.far.end.write(b"last")
    pair.network.kill(pair.b)
    pair.far.end.write(b"beyond")
    pair.run()
    assert (pair.near.received, len(pair.near.lost), pair.far.lost) == (b"last", 1, [])
    with pytest.raises(ConnectionRefusedError):
        pair.loop.run_until_complete(pair.loop.create_connection(Keeps, "a.b", 1))


def test_an_answer_goes_on_with_what_was_to_come() -> None:
    prompt = TOKENIZER.encode("what was said before.", False)
    whole = answer_to(prompt, 40)
    assert len(whole) > 10
    for cut in range(len(whole)):
        assert answer_to(prompt + whole[:cut], 40 - cut) == whole[cut:]
    assert {answer_to([one], 40)[-1] == END for one in range(100)} == {True, False}


def ask_of(*, stream: bool) -> Ask:
    asking = Asking(Random(1), families=1)
    return next(
        one
        for one in iter(asking.next, None)
        if one.stream is stream and not one.chat and len(text_of(one.answer)) > 5
    )


def test_an_altered_answer_is_wrong() -> None:
    ask = ask_of(stream=False)
    text = text_of(ask.answer)

    def wrong(text: str, completion_tokens: int = len(ask.answer)) -> str | None:
        finish = "stop" if ask.answer[-1] == END else "length"
        body = (
            f'{{"choices":[{{"text":"{text}","finish_reason":"{finish}"}}],"usage":'
            f'{{"prompt_tokens":{len(ask.prompt)},"completion_tokens":{completion_tokens}}}}}'
        )
        return ask.judge(200, body.encode(), whole=True)[1]

    assert wrong(text) is None
    assert wrong(text[:-1]) is not None
    assert wrong(text, len(ask.answer) + 1) is not None


def test_a_stream_that_ends_without_a_word_is_wrong() -> None:
    ask = ask_of(stream=True)
    ask.attempts.append(("r0", False))
    said = f'data: {{"choices":[{{"text":"{text_of(ask.answer)[:3]}"}}]}}\n\n'.encode()
    assert ask.judge(200, said, whole=True) == ("cut off", "the stream ended without a word")
    assert ask.judge(200, said, whole=False) == ("cut off", "it ended without a word")
    error = b'data: {"error":{"message":"broke"}}\n\n'
    assert ask.judge(200, said + error, whole=True) == ("stream error", None)
