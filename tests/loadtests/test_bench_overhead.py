"""The overhead benchmark runs, its load generator misses nothing, its targets are told right."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from loadtests.bench_overhead import main
from loadtests.overhead.answers import AnswerReader, without_chunks
from loadtests.overhead.cases import CASES, CHAT_400K, PLAIN, REPEATED, STREAM_20, Requests
from loadtests.overhead.load import Generator
from loadtests.overhead.orders import Closed, Idle, LetGo, Open
from loadtests.overhead.report import Target, contest_lines, target_lines, targets
from loadtests.overhead.scores import Added, IdleCost, Round, Score
from loadtests.stand_in import StandIn

EVENT = b'data: {"delta":{"content":" word"}}\n\n'


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def plain(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


WHOLE_STREAM = chunked(*[EVENT] * 20, b"data: [DONE]\n\n")


@asynccontextmanager
async def replica(answers: Sequence[bytes] = ()) -> AsyncIterator[int]:
    """The port of a stand-in, or of a server that gives these answers in turn, then hangs up."""
    loop = asyncio.get_running_loop()
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while left:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
            writer.write(left.pop(0))
        writer.close()

    if answers:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
    else:
        server = await loop.create_server(StandIn, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


# The whole


@pytest.mark.processes
def test_the_benchmark_runs_and_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "results.json"
    assert main(["--quick", "--only", "warmroute", "--json", str(file)], isolated=False) == 0
    told = json.loads(file.read_text())
    assert told["scores"].keys() == {case.name for case in CASES}
    for case, by_name in told["scores"].items():
        assert by_name["warmroute"]["errors"] == 0, case
        assert by_name["warmroute"]["cpu_s"] > 0
    assert told["unasked"]["warmroute"] > 0
    assert told["kv_events"]["followed"] == 2
    assert told["kv_events"]["cached_tokens"] > 0
    assert told["idle_connections"]["errors"] == told["added_latency"]["errors"] == 0
    assert "stream of 200 chunks" in capsys.readouterr().out


@pytest.mark.processes
def test_what_a_request_costs_is_told_by_replicas_and_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "results.json"
    assert main(["--quick", "--scaling", "--json", str(file)], isolated=False) == 0
    points = json.loads(file.read_text())["scaling"]
    sizes = [(one["replicas"], one["workers"]) for one in points]
    assert sizes == [(2, 1), (8, 1), (2, 2)]
    assert not any(one["score"]["rounds"][0]["errors"] for one in points)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_only_who_takes_part_can_be_chosen(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--quick", "--only", "haproxy"], isolated=False)
    assert "no contestant is called haproxy" in capsys.readouterr().err


# The load


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_request_is_a_chat_of_the_size_it_says(case):
    head, body = Requests(case).request(7).split(b"\r\n\r\n", 1)
    assert head.endswith(b"content-length: %d" % len(body))
    assert len(body) == pytest.approx(case.size_bytes, rel=0.1)
    chat = json.loads(body)
    assert len(chat["messages"]) == case.turns
    assert chat["messages"][-1]["role"] == "user"
    assert chat["stream"] is (case.events is not None)


def test_no_two_requests_share_a_message():
    requests = Requests(CHAT_400K)
    first, second = (
        [message["content"] for message in json.loads(body.split(b"\r\n\r\n", 1)[1])["messages"]]
        for body in (requests.request(1), requests.request(2))
    )
    assert len({*first, *second}) == 2 * CHAT_400K.turns


def test_repeated_requests_are_the_same():
    assert Requests(REPEATED).request(1) == Requests(REPEATED).request(2)
    assert Requests(PLAIN).request(1) != Requests(PLAIN).request(2)


@pytest.mark.parametrize(
    ("case", "answer"),
    [
        pytest.param(PLAIN, plain(b'{"content":"Hello there."}'), id="with a length"),
        pytest.param(PLAIN, chunked(b'{"content":"Hello ', b'there."}'), id="cut by chunks"),
        pytest.param(STREAM_20, WHOLE_STREAM, id="a stream"),
        pytest.param(
            STREAM_20, chunked(EVENT * 19 + EVENT[:29], EVENT[29:], b"data: [DONE]"), id="cut event"
        ),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 3, 7, 100_000])
def test_an_answer_is_whole_with_its_last_byte(case, answer: bytes, piece_bytes: int):
    reader = AnswerReader(case)
    for _ in range(2):  # keep-alive
        starts = range(0, len(answer), piece_bytes)
        ends = [reader.feed(answer[start : start + piece_bytes]) for start in starts]
        assert ends == [False] * (len(ends) - 1) + [True]
        assert reader.finish() == ""


@pytest.mark.parametrize(
    ("case", "answer", "wrong"),
    [
        pytest.param(PLAIN, plain(b"{}"), "a truncated answer", id="not the body"),
        pytest.param(PLAIN, plain(b"{}", b"503 Busy"), "HTTP/1.1 503 Busy", id="not 200"),
        pytest.param(PLAIN, plain(b"Hello there.") + b"x", "more than one", id="too much"),
        pytest.param(
            STREAM_20, chunked(EVENT, b"data: [DONE]"), "1 events of 20", id="events missing"
        ),
        pytest.param(STREAM_20, chunked(*[EVENT] * 20), "20 events of 20", id="no end"),
    ],
)
def test_a_wrong_answer_is_told(case, answer: bytes, wrong: str):
    reader = AnswerReader(case)
    assert reader.feed(answer)
    assert wrong in reader.finish()


def test_a_body_comes_out_of_its_chunks():
    assert without_chunks(chunked(b"one", b"two" * 10)) == b"one" + b"two" * 10


@pytest.mark.parametrize("case", [PLAIN, STREAM_20, CHAT_400K], ids=lambda case: case.name)
async def test_a_closed_loop_counts_every_answer(case):
    async with replica() as port:
        done = await Generator().carry_out(
            Closed(port=port, case=case, connections=3, seconds=0.05)
        )
    assert (done.errors, done.error) == (0, "")
    assert done.requests >= 3
    assert 0 < done.p50_s <= done.p99_s


async def test_every_event_of_a_stream_is_a_packet_of_its_own():
    async with replica() as port:
        done = await Generator().carry_out(
            Closed(port=port, case=STREAM_20, connections=1, seconds=0.01)
        )
    assert done.reads_per_answer >= 20


async def test_an_open_loop_sends_what_comes_whatever_the_answers_do():
    rng, came, at_s = Random(3), 0, 0.0
    while at_s < 0.2:
        came, at_s = came + 1, at_s + rng.expovariate(200)
    async with replica() as port:
        done = await Generator().carry_out(
            Open(port=port, case=PLAIN, connections=2, seconds=0.2, rate_per_s=200, seed=3)
        )
    assert (done.requests, done.errors) == (came, 0)


async def test_idle_connections_have_been_used_once_and_stay():
    async with replica() as port:
        generator = Generator()
        done = await generator.carry_out(Idle(port=port, connections=20))
        assert (done.requests, done.errors) == (20, 0)
        await generator.carry_out(LetGo())


async def test_wrong_answers_and_lost_connections_are_errors():
    answers = [plain(b"Hello there."), plain(b"{}", b"500 Broken")]
    async with replica(answers) as port:
        done = await Generator().carry_out(
            Closed(port=port, case=PLAIN, connections=1, seconds=0.1)
        )
    assert done.errors > 1
    assert done.error.startswith("HTTP/1.1 500 Broken")


# The report


def score(cpu_us: float, *more_us: float, errors: int = 0) -> Score:
    return Score(
        rounds=[
            Round(
                requests=100,
                requests_per_s=1e6 / one,
                p50_s=one / 1e6,
                p99_s=one / 1e5,
                cpu_s=one / 1e6,
                generator_busy=0.1,
                reads_per_answer=1.0,
                errors=errors,
                error="HTTP/1.1 500" if errors else "",
            )
            for one in (cpu_us, *more_us)
        ]
    )


def found_of(**by_name: Score) -> list[Target]:
    named = {
        name.replace("__", " ").replace("_router", "-router"): one for name, one in by_name.items()
    }
    return targets({PLAIN.name: named, STREAM_20.name: named}, None, None)


def test_the_best_round_of_each_measure_counts():
    assert score(90, 80, 100).cpu_s == pytest.approx(80e-6)
    assert score(90, 80, 100).requests_per_s == pytest.approx(1e6 / 80)


@pytest.mark.parametrize(
    ("place", "peers", "met"),
    [
        pytest.param(0, {}, True, id="our own number"),
        pytest.param(1, {"smg__cache_aware": score(160)}, True, id="half of the cache-aware"),
        pytest.param(1, {"smg__cache_aware": score(159)}, False, id="more than half of it"),
        pytest.param(1, {"smg__round_robin": score(10)}, None, id="no cache-aware one"),
        pytest.param(
            1,
            {"smg__cache_aware": score(160), "sglang_router__cache_aware": score(9, errors=1)},
            True,
            id="wrong answers do not compete",
        ),
        pytest.param(2, {"smg__round_robin": score(81)}, True, id="below round robin"),
        pytest.param(2, {"smg__round_robin": score(80)}, False, id="not below round robin"),
        pytest.param(3, {"smg__round_robin": score(150)}, False, id="any mode, for streams"),
        pytest.param(4, {"nginx": score(27)}, True, id="three times nginx"),
        pytest.param(4, {"nginx": score(26)}, False, id="more than that"),
        pytest.param(5, {}, None, id="not measured"),
    ],
)
def test_a_target_is_met_or_not(place: int, peers: dict[str, Score], met: bool | None):
    assert found_of(warmroute=score(80), **peers)[place].met is met


def test_no_target_is_met_with_wrong_answers():
    found = found_of(warmroute=score(80, errors=1), smg__cache_aware=score(500))
    assert [one.met for one in found[:2]] == [False, False]
    assert found[0].value == math.inf


def test_targets_of_latency_and_memory():
    added = Added(
        rate_per_s=100.0,
        direct_p50_s=0.001,
        direct_p99_s=0.002,
        through_p50_s=0.002,
        through_p99_s=0.0029,
        errors=0,
    )
    idle = IdleCost(connections=10_000, before_bytes=100_000_000, after_bytes=160_000_000, errors=0)
    *_, latency, growth, total = targets({}, added, idle)
    assert (latency.met, growth.met, total.met) == (True, True, False)
    assert growth.value == 60.0


def test_the_tables_show_ratios_and_mark_errors():
    scores = {PLAIN.name: {"warmroute": score(80), "nginx": score(20), "smg": score(160, errors=2)}}
    lines = contest_lines(scores, {"litellm": "not here"})
    assert "20 (0.25×)" in lines[2]
    assert "160 (2×)" in lines[3]
    assert "2 !" in lines[3]
    assert "! smg, plain, 1 KB: 2 of 100 answers were wrong, the first: 'HTTP/1.1 500'" in lines
    assert lines[-1] == "litellm was not measured: not here"


def test_every_target_has_a_line():
    lines = target_lines(found_of(warmroute=score(95)))
    assert len(lines) == 11
    assert lines[1].split()[-1] == "NO"
    assert lines[-1].split()[-1] == "-"
