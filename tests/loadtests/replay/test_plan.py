"""Requests as bodies: lengths clamped and scaled, each endpoint's fields, time from the first."""

from array import array

import msgspec

from loadtests.replay.plan import CHAT, COMPLETIONS, Lengths, Planner, extent_of
from loadtests.replay.prompts import UNCALIBRATED, PromptWriter
from loadtests.sim.request import SimRequest

REQUESTS = [
    SimRequest(number=0, arrival_s=5.0, prompt=array("I", range(1000)), output_tokens=200),
    SimRequest(number=1, arrival_s=7.5, prompt=array("I", range(40)), output_tokens=1),
]


def planner(path: str, *, ignore_eos: bool = False, **lengths: object) -> Planner:
    chosen = Lengths(**lengths)  # type: ignore[arg-type]
    writer = PromptWriter(UNCALIBRATED, scale=chosen.scale)
    return Planner(model="m", path=path, lengths=chosen, writer=writer, ignore_eos=ignore_eos)


def test_time_begins_with_the_first_request() -> None:
    lengths = Lengths()
    extent = extent_of(REQUESTS, lengths)
    assert (extent.requests, extent.first_s, extent.tokens_max) == (2, 5.0, 1200)
    planned = list(planner(CHAT).plan(REQUESTS, extent.first_s))
    assert [one.due_s for one in planned] == [0.0, 2.5]


def test_lengths_are_scaled_then_clamped_and_never_zero() -> None:
    planned = list(planner(CHAT, scale=0.1, max_tokens=15).plan(REQUESTS, 0.0))
    assert [(one.prompt_tokens, one.output_tokens) for one in planned] == [(100, 15), (4, 1)]
    body = msgspec.json.decode(planned[0].body)
    assert len(body["messages"][0]["content"].split()) == 100
    assert body["max_tokens"] == 15


def test_each_endpoint_has_its_own_fields() -> None:
    chat, plain = (
        msgspec.json.decode(next(planner(path).plan(REQUESTS, 0.0)).body)
        for path in (CHAT, COMPLETIONS)
    )
    assert chat["messages"] == [{"role": "user", "content": plain["prompt"]}]
    for body in (chat, plain):
        assert body["model"] == "m"
        assert body["stream"] is True
        assert body["stream_options"] == {"include_usage": True}
        assert "ignore_eos" not in body
    (first, _) = planner(CHAT, ignore_eos=True).plan(REQUESTS, 0.0)
    assert msgspec.json.decode(first.body)["ignore_eos"] is True


def test_what_will_not_be_sent_has_no_body() -> None:
    assert [one.body for one in planner(CHAT).plan(REQUESTS, 0.0, bodies=False)] == [b"", b""]
