"""The simulator: the same run each time, nobody lost, and coasting that changes nothing."""

from array import array
from collections.abc import Iterator
from random import Random

import pytest

from loadtests.sim import replica as sim_replica
from loadtests.sim.contest import all_routers
from loadtests.sim.fit import fit
from loadtests.sim.ours import Ours
from loadtests.sim.report import row_of
from loadtests.sim.request import SimRequest
from loadtests.sim.router import MakeRouter
from loadtests.sim.world import ReplicaSpec, Run, World
from replica.core.plan import SamplingParams, SequenceSlice, StepPlan
from replica.core.timing import PRESETS, Preset, Timing, work_of
from router.core.policies import make_policy

SMALL = Preset(
    timing=Timing(base_s=0.01, token_s=1e-4, pair_s=1e-8, sequence_s=1e-4, held_s=1e-7),
    cache_tokens=16_000,
    max_batched_tokens=512,
    max_running=16,
)


def chats(count: int, seed: int, per_s: float = 4.0) -> Iterator[SimRequest]:
    """Conversations of a few turns, each beginning with what was said before."""
    random, now = Random(seed), 0.0
    said: dict[int, array[int]] = {}
    for number in range(count):
        now += random.expovariate(per_s)
        conversation = random.randrange(1 + count // 4)
        before = said.get(conversation, array("I"))
        new = array("I", [1000 * number + at for at in range(random.randrange(1, 300))])
        said[conversation] = before + new
        yield SimRequest(
            number=number,
            arrival_s=now,
            prompt=said[conversation],
            output_tokens=random.randrange(1, 120),
            conversation=conversation,
        )


def policy(name: str) -> MakeRouter:
    return lambda facts, rng: Ours(facts, rng, make_policy(name))


def run_of(
    name: str = "prefix_aware", seed: int = 1, count: int = 150, **spec: object
) -> tuple[Run, World]:
    specs = [ReplicaSpec(preset=SMALL, block_size=16, **spec) for _ in range(3)]  # type: ignore[arg-type]
    world = World(specs, policy(name), seed)
    run = world.run(chats(count, seed))
    world.check()
    return run, world


@pytest.mark.parametrize("name", ["prefix_aware", "random", "power_of_two"])
def test_the_same_arguments_give_the_same_run(name: str) -> None:
    first, second = run_of(name)[0], run_of(name)[0]
    assert first == second
    assert first != run_of(name, seed=2)[0]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_request_is_answered_and_every_lease_given_back(seed: int) -> None:
    run, world = run_of(seed=seed)
    assert [one.request for one in run.served] == list(range(150))
    for one in run.served:
        assert one.first_token_s is not None
        assert one.ended_s is not None
        assert 0 < one.first_token_s <= one.ended_s
        assert not one.failed
        assert 0 <= one.cached_tokens < one.prompt_tokens
    assert isinstance(world.router, Ours)
    world.router.check()
    row = row_of("ours", run, SMALL)
    assert row.hit_tokens == sum(one.cached_tokens for one in run.served) > 0
    assert row.failed == 0
    assert 0 < row.ttft_p50_s <= row.ttft_p99_s


@pytest.mark.parametrize("blocks", [1000, 160], ids=["ample", "tight"])
def test_coasting_changes_no_time_and_no_hit(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    coasting = run_of("round_robin", cache_blocks=blocks)[0]
    monkeypatch.setattr(sim_replica, "coast_steps_max", lambda scheduler, last: 0)
    single = run_of("round_robin", cache_blocks=blocks)[0]
    assert [one.replica for one in coasting.served] == [one.replica for one in single.served]
    for a, b in zip(coasting.served, single.served, strict=True):
        assert a.failed == b.failed
        assert a.ended_s == pytest.approx(b.ended_s, rel=1e-6)
        if not a.failed:
            assert a.first_token_s == pytest.approx(b.first_token_s, rel=1e-6)
        assert a.cached_tokens == b.cached_tokens
    assert coasting.busy_s == pytest.approx(single.busy_s)
    assert coasting.computed_tokens == single.computed_tokens


def test_an_idle_replica_takes_what_its_timing_says() -> None:
    one = SimRequest(number=0, arrival_s=5.0, prompt=array("I", range(1000)), output_tokens=3)
    world = World([ReplicaSpec(preset=SMALL, block_size=16)], policy("round_robin"), 0)
    (served,) = world.run([one]).served
    timing = SMALL.timing
    chunks = 2 * timing.base_s + 1000 * timing.token_s + (1000 * 1001 / 2) * timing.pair_s
    assert served.first_token_s == pytest.approx(chunks)
    decodes = sum(timing.decode_s(1, 1000 + more) for more in (1, 2))
    assert served.ended_s == pytest.approx(chunks + decodes)


def test_a_replica_that_restarts_fails_what_it_had_and_comes_back_empty() -> None:
    specs = [ReplicaSpec(preset=SMALL, block_size=16, restarts_at_s=(12.0,)) for _ in range(1)]
    world = World(specs, policy("prefix_aware"), 0)
    run = world.run(chats(100, 1))
    world.check()
    failed = [one for one in run.served if one.failed]
    assert failed
    assert all(one.arrival_s <= 12.0 <= one.arrival_s + (one.ended_s or 0) for one in failed)
    assert len(run.served) == 100
    assert isinstance(world.router, Ours)
    world.router.check()


def test_what_fits_no_cache_fails_and_nothing_hangs() -> None:
    huge = SimRequest(number=0, arrival_s=0.0, prompt=array("I", range(5000)), output_tokens=9)
    small = SimRequest(number=1, arrival_s=0.1, prompt=array("I", range(50)), output_tokens=9)
    specs = [ReplicaSpec(preset=SMALL, block_size=16, cache_blocks=100)]
    for make in all_routers().values():
        world = World(specs, make, 0)
        run = world.run([huge, small])
        assert [one.failed for one in run.served] == [True, False]
        world.router.check()  # type: ignore[attr-defined]


def test_a_timing_is_found_again_from_its_steps() -> None:
    random, timing = Random(0), PRESETS["h100-8b"].timing
    plans = [_plan(random) for _ in range(60)]
    steps = [(work_of(plan), timing.step_s(plan) * random.uniform(0.99, 1.01)) for plan in plans]
    found = fit(steps)
    for plan in (_plan(random) for _ in range(20)):
        assert found.step_s(plan) == pytest.approx(timing.step_s(plan), rel=0.03)
    with pytest.raises(ValueError, match="too much alike"):
        fit([steps[0]] * 20)
    with pytest.raises(ValueError, match="3 steps tell no 5 numbers"):
        fit(steps[:3])


def _plan(random: Random) -> StepPlan:
    def part(number: int, tokens: int, start: int) -> SequenceSlice:
        return SequenceSlice(
            sequence_id=number,
            token_ids=[0] * tokens,
            start=start,
            block_table=[],
            sampling=SamplingParams(),
        )

    decodes = [part(n, 1, random.randrange(1, 4000)) for n in range(random.randrange(40))]
    prefills = [
        part(100 + n, random.randrange(2, 4000), random.choice((0, 0, 3000)))
        for n in range(random.randrange(3))
    ]
    return StepPlan(slices=decodes + prefills)


def test_an_answer_that_a_later_prompt_has_is_found_in_the_cache() -> None:
    question, answer = array("I", range(64)), array("I", range(1000, 1064))
    first = SimRequest(
        number=0, arrival_s=0.0, prompt=question, output_tokens=len(answer), answer=answer
    )
    later = SimRequest(
        number=1,
        arrival_s=60.0,
        prompt=question + answer + array("I", [7]),
        output_tokens=1,
    )
    world = World([ReplicaSpec(preset=SMALL, block_size=16)], policy("round_robin"), 0)
    served = world.run([first, later]).served
    # The last token of an answer is never computed: its block is not full.
    assert [one.cached_tokens for one in served] == [0, 64 + 48]
