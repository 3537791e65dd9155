"""Continuous batching: which tokens the next engine step computes, and what its result means.

One step, one token budget, prompts and generation mixed:

1. Sequences that generate get their one token each, oldest first. One that needs a block when none
   is free takes it from the newest running sequence, which is preempted: its blocks go, its tokens
   stay, and it is computed again later (most of it from the cache, if that survives).
2. What is left of the budget goes to prompts, the most urgent first (`replica.core.queue_orders`):
   those that run get the next chunk, and those that wait are admitted, unless somebody was
   preempted. So a short prompt need not wait until a long one that runs is done.
3. A sequence is admitted with the blocks of all its tokens, so prompts never run out of memory
   half-way, and only if every sequence running could still get one more block. One that does not
   fit holds up those after it that wait.
4. A sequence whose next uncached block a running prompt computes next, in this step, or in one in
   flight ("pending"), waits a step to find it cached, instead of computing it twice; those after it
   may pass. It does so at most once per block of its own, so that it cannot wait for ever.

The oldest running sequence is never preempted, and every order lets everybody be the most urgent
at some time: nobody starves.

A step may be planned while the one before it is in flight: each sequence that generates goes on
from a token that is not known yet. Should that token end the sequence, its place in the planned
step is wasted; an end by length is known ahead. `apply` takes the results in the order of the
plans. `abort` may come at any time: the blocks are free at once, since the device works in order
and whoever gets them next writes after the steps in flight.

Source for mixing prompts and generation: Agrawal et al. 2024, Sarathi-Serve, arXiv:2403.02310.
"""

from bisect import insort
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field

from protocol.kv_events import BlockStored, KvEvent
from replica.core.block_pool import BlockPool
from replica.core.draft import Draft
from replica.core.limits import Counters, NeverFits, QueueFull, SchedulerLimits
from replica.core.plan import STEPS_IN_FLIGHT_MAX, StepPlan, StepResult
from replica.core.queue_order import QueueOrder, arrival_of, take
from replica.core.queue_orders import QUEUE_ORDERS, QueueOrderName
from replica.core.sequence import Finish, Sequence, SequenceOutput, SequenceRequest, State
from replica.core.table_checks import check_tables


@dataclass(slots=True)
class Scheduler:
    """Owns every sequence and the block pool; pure: the time is an argument."""

    limits: SchedulerLimits
    pool: BlockPool
    queue_order: InitVar[QueueOrderName] = "response_ratio"
    counters: Counters = field(default_factory=Counters)
    _sequences: dict[int, Sequence] = field(default_factory=dict)
    _running: list[Sequence] = field(default_factory=list)  # by arrival, oldest first
    _waiting: QueueOrder = field(init=False)
    _tried: list[Sequence] = field(default_factory=list)  # when somebody was admitted last
    _arrivals: int = 0
    _in_flight: deque[Draft] = field(default_factory=deque)

    def __post_init__(self, queue_order: QueueOrderName) -> None:
        self._waiting = QUEUE_ORDERS[queue_order](self.pool)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that waiting sequences have yet to compute, cache hits not yet taken off."""
        return sum(sequence.num_tokens for sequence in self._waiting)

    def submit(self, request: SequenceRequest, now: float) -> None:
        """Takes `request`.

        Args:
            now: When it came: seconds, on the clock that `schedule` is given too; of one submitted
                later it is no earlier.

        Raises:
            QueueFull: max_waiting_sequences wait beside those that may run.
            NeverFits: its prompt leaves no room for a token, in the context or in the KV cache.
        """
        assert request.sequence_id not in self._sequences, "sequence ids are unique"
        assert request.prompt_token_ids, "a prompt has a token"
        assert request.max_tokens > 0
        prompt = len(request.prompt_token_ids)
        if prompt >= self.limits.max_model_len:
            raise NeverFits(
                f"the prompt has {prompt} tokens; the context holds {self.limits.max_model_len}, "
                "prompt and answer together"
            )
        capacity = self.pool.total_blocks * self.pool.block_size
        if self._longest(request) - 1 > capacity:  # the last token's KV is never computed
            raise NeverFits(
                f"{prompt} prompt tokens and {request.max_tokens} to generate; the whole KV "
                f"cache holds {capacity}"
            )
        # A free place to run counts too: sequences that arrive together are not refused for
        # waiting until the next step.
        most = self.limits.max_running_sequences + self.limits.max_waiting_sequences
        if len(self._sequences) >= most:
            raise QueueFull(f"{len(self._sequences)} sequences are running or waiting already")
        sequence = Sequence(request=request, arrival=self._arrivals, arrived_s=now)
        sequence.findable = self.limits.prefix_cache
        self._arrivals += 1
        self._sequences[request.sequence_id] = sequence
        self._waiting.add(sequence)

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to do before another is applied."""
        assert len(self._in_flight) < STEPS_IN_FLIGHT_MAX, "too many steps have not been applied"
        draft = Draft(self.pool.block_size, self.limits.max_batched_tokens)
        preemptions = self.counters.preemptions
        for sequence in list(self._running):
            if sequence.num_unplanned == 1 and self._goes_on(sequence) and self._grow(sequence):
                draft.add(sequence)
        self._add_prompts(draft, now, may_admit=self.counters.preemptions == preemptions)
        if not draft.slices:
            assert self._in_flight or not self.has_work, "somebody always advances"
            return None
        self._in_flight.append(draft)
        return StepPlan(slices=draft.slices)

    def apply(self, result: StepResult, now: float) -> list[SequenceOutput]:
        """Takes in the result of the oldest plan in flight; one output per new token.

        Args:
            now: Seconds; unused by today's rules, part of the contract with the simulator.
        """
        assert self._in_flight, "no step is in flight"
        step = self._in_flight.popleft()
        self.counters.steps += 1
        outputs = []
        for part, sequence, token in zip(step.slices, step.sequences, result.sampled, strict=True):
            assert (token is None) == (part.sampling is None)
            if sequence.state is State.ENDED:
                continue  # aborted, or the token before this one was its last
            if sequence.state is State.RUNNING:  # and not preempted meanwhile
                sequence.num_computed += part.num_tokens
                self._store_full_blocks(sequence)
            if token is not None:
                sequence.num_unknown -= 1
                outputs.append(self._append(sequence, token))
        return outputs

    def abort(self, sequence_id: int) -> bool:
        """Ends a sequence and frees its blocks at once; False when there is none (any more)."""
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return False
        self._end(sequence)
        return True

    def reset_prefix_cache(self) -> None:
        """Forgets all cached content. Running sequences go on; what they computed is not shared.

        No step may be in flight.
        """
        assert not self._in_flight
        for sequence in self._running:
            sequence.findable = False
            sequence.num_stored = 0
        self.pool.clear()

    def take_events(self) -> list[KvEvent]:
        return self.pool.take_events()

    def snapshot(self) -> list[BlockStored]:
        return self.pool.snapshot()

    def _goes_on(self, sequence: Sequence) -> bool:
        """Whether it wants another token after those in flight, if none of them ends it."""
        return sequence.num_tokens + sequence.num_unknown < self._longest(sequence.request)

    def _longest(self, request: SequenceRequest) -> int:
        """Tokens it has at most, prompt and answer together."""
        return min(len(request.prompt_token_ids) + request.max_tokens, self.limits.max_model_len)

    def _grow(self, sequence: Sequence) -> bool:
        """Gives a generating sequence the block for its newest token; False: it was preempted."""
        if sequence.state is not State.RUNNING:
            return False  # preempted for an older one in this very step
        if sequence.num_planned < len(sequence.blocks) * self.pool.block_size:
            return True
        while self.pool.free_blocks == 0:
            newest = self._running[-1]
            self._preempt(newest)
            if newest is sequence:
                return False
        sequence.blocks += self.pool.allocate(1)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.counters.preemptions += 1
        sequence.lost_tokens = max(sequence.lost_tokens, sequence.num_planned)
        take(self._running, sequence)
        self._let_go(sequence)
        sequence.state = State.WAITING
        sequence.findable = self.limits.prefix_cache
        self._waiting.add(sequence)

    def _add_prompts(self, draft: Draft, now: float, *, may_admit: bool) -> None:
        """Shares what is left of the budget among prompts, those that run and those that wait."""
        running = deque(
            sorted(
                (one for one in self._running if one.num_unplanned > 1),
                key=lambda one: self._waiting.urgency(one, now),
            )
        )
        for prompt in running:
            draft.will_compute_more(prompt)
        candidates: Iterator[Sequence] = iter(())
        if may_admit:
            candidates, self._tried = self._waiting.candidates(now), []
        while draft.budget > 0 and len(self._running) < self.limits.max_running_sequences:
            if (candidate := next(candidates, None)) is None:
                break
            urgency = self._waiting.urgency(candidate, now)
            while running and self._waiting.urgency(running[0], now) <= urgency:
                draft.add(running.popleft())
            if draft.budget == 0 or not self._try(candidate, draft, now):
                break
        for prompt in running:
            draft.add(prompt)

    def _try(self, sequence: Sequence, draft: Draft, now: float) -> bool:
        """Admits it, if it need not wait for a block; False: it does not fit."""
        self._tried.append(sequence)
        hit = self._cached_blocks(sequence, draft)
        if hit is None:
            sequence.pending_waits += 1
            return True
        needed = self._blocks_for(sequence.num_tokens) - len(hit)
        free_after = self.pool.free_blocks - self.pool.count_evictable(hit) - needed
        if free_after < len(self._running):
            self._waiting.reserve(sequence)
            return False
        self.pool.acquire(hit, sequence.num_had_blocks)
        sequence.blocks = hit + self.pool.allocate(needed)
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=arrival_of)
        self._start(sequence, len(hit), now)
        draft.add(sequence)
        return True

    def _cached_blocks(self, sequence: Sequence, draft: Draft) -> list[int] | None:
        """The blocks of its longest cached prefix; None: wait a step, the next one is pending.

        The last token is always left to compute, since its logits are needed.
        """
        blocks: list[int] = []
        if not sequence.findable:
            return blocks
        full_blocks = (sequence.num_tokens - 1) // self.pool.block_size
        for key in sequence.keys(full_blocks, self.pool.block_size)[:full_blocks]:
            block = self.pool.find(key)
            if block is None:
                may_wait = sequence.pending_waits < full_blocks
                return None if may_wait and self._is_pending(key.hash, draft) else blocks
            blocks.append(block)
        return blocks

    def _is_pending(self, name: int, draft: Draft) -> bool:
        return any(name in step.pending for step in (draft, *self._in_flight))

    def _start(self, sequence: Sequence, hit_blocks: int, now: float) -> None:
        assert not sequence.num_unknown
        hit_tokens = hit_blocks * self.pool.block_size
        sequence.state = State.RUNNING
        sequence.num_computed = sequence.num_planned = hit_tokens
        sequence.num_stored = hit_blocks
        if sequence.started_s is not None:
            self.counters.recomputed_tokens += max(0, sequence.lost_tokens - hit_tokens)
            sequence.lost_tokens = hit_tokens
            return
        sequence.started_s = now
        sequence.cached_tokens = hit_tokens
        self.counters.prompt_tokens += sequence.num_prompt_tokens
        if self.limits.prefix_cache:
            self.counters.prefix_queries += sequence.num_prompt_tokens
            self.counters.prefix_hits += hit_tokens

    def _store_full_blocks(self, sequence: Sequence) -> None:
        """Makes the blocks that the last step filled findable."""
        while sequence.findable and (
            sequence.num_stored < sequence.num_computed // self.pool.block_size
        ):
            index = sequence.num_stored
            key = sequence.key(index, self.pool.block_size)
            had = index < sequence.num_had_blocks
            block = self.pool.store(sequence.blocks[index], key, again=had)
            if block is None:
                sequence.findable = False
                return
            sequence.put_block(index, block)
            sequence.num_stored += 1

    def _append(self, sequence: Sequence, token: int) -> SequenceOutput:
        first = sequence.num_generated == 0
        sequence.token_ids.append(token)
        self.counters.generated_tokens += 1
        finish = self._finish(sequence, token)
        if finish is not None:
            self._end(sequence)
        started_s = sequence.started_s
        assert started_s is not None
        return SequenceOutput(
            sequence_id=sequence.request.sequence_id,
            token_id=token,
            finish=finish,
            cached_tokens=sequence.cached_tokens,
            queue_time_s=started_s - sequence.arrived_s if first else None,
        )

    def _finish(self, sequence: Sequence, token: int) -> Finish | None:
        if token in sequence.request.stop_token_ids:
            return Finish.STOP
        return Finish.LENGTH if sequence.num_tokens >= self._longest(sequence.request) else None

    def _end(self, sequence: Sequence) -> None:
        if sequence.state is State.RUNNING:
            take(self._running, sequence)
        else:
            self._waiting.remove(sequence)
        self._let_go(sequence)
        sequence.state = State.ENDED
        del self._sequences[sequence.request.sequence_id]

    def _let_go(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.forget_blocks()

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.pool.block_size)

    def check(self) -> None:
        """Nobody is lost or runs twice, block tables are right, and so is what is unknown."""
        self.pool.check()
        self._waiting.check()
        assert len(self._running) <= self.limits.max_running_sequences
        assert {id(one) for one in self._sequences.values()} == {
            id(one) for one in [*self._running, *self._waiting]
        }
        check_tables(self.pool, self._running, list(self._waiting))
        unknown = Counter(
            id(sequence)
            for step in self._in_flight
            for part, sequence in zip(step.slices, step.sequences, strict=True)
            if part.sampling is not None
        )
        for sequence in self._sequences.values():
            assert sequence.num_unknown == unknown[id(sequence)]
