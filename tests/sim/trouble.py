"""What befalls replicas and workers of a world, as its faults' rates say; and its end."""

from typing import TYPE_CHECKING

from router.core.lease_board import clear_row
from router.core.states import StateEvent
from tests.sim.replica import SimReplica
from tests.sim.worker import Worker

if TYPE_CHECKING:
    from tests.sim.world import World

TICK_S = 0.1


class Trouble:
    """Told to strike ten times a second; `end` mends everything."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._drained: dict[str, None] = {}
        self._started = 0

    def tick(self) -> None:
        world, rng, faults = self._world, self._world.rng, self._world.scenario.faults
        for replica in world.replicas.values():
            for rate, strike in (
                (faults.crash, self._crash),
                (faults.stall, self._stall),
                (faults.partition, self._part),
                (faults.drain, self._drain),
                (faults.clock_jump, self._jump),
                (faults.reset_cache, self._reset_cache),
            ):
                if rate and rng.random() < rate * TICK_S:
                    strike(replica)
        for worker in list(world.workers):
            if rng.random() < faults.worker_death * TICK_S:
                self._kill(worker)
            elif rng.random() < faults.worker_drain * TICK_S and not worker.draining:
                world.spawn(self._drain_worker(worker))

    def end(self) -> None:
        """Everybody is there again, and may get requests."""
        for replica in self._world.replicas.values():
            replica.thaw()
            self._start_again(replica)
        for name in list(self._drained):
            self._order(name, StateEvent.UNDRAIN)
        for number in range(self._world.scenario.workers):
            self._replace(number)

    # Replicas

    def _crash(self, replica: SimReplica) -> None:
        if replica.up:
            replica.crash()
            back_s = self._world.rng.choice((0.01, 0.3, 1.0, 3.0))
            self._world.loop.call_later(back_s, self._start_again, replica)

    def _start_again(self, replica: SimReplica) -> None:
        if not replica.up:
            replica.start()

    def _stall(self, replica: SimReplica) -> None:
        replica.freeze()
        seconds = self._world.rng.uniform(0.05, 4.0)
        self._world.loop.call_later(seconds, self._thaw, replica, replica.life)

    def _thaw(self, replica: SimReplica, life: int) -> None:
        if replica.life == life:
            replica.thaw()

    def _part(self, replica: SimReplica) -> None:
        world = self._world
        if not world.workers:
            return
        worker, seconds = world.rng.choice(world.workers), world.rng.uniform(0.1, 3.0)
        name = worker.process.name
        world.journal.add(replica.name, f"is parted from {name} for {seconds:.2f} s")
        world.network.part(name, replica.name, world.loop.time() + seconds)
        subscriber = worker.post.subscribers.get(replica.name)
        if subscriber is not None and world.rng.random() < 0.5:
            subscriber.disconnect()

    def _drain(self, replica: SimReplica) -> None:
        drained = replica.name in self._drained
        self._order(replica.name, StateEvent.UNDRAIN if drained else StateEvent.DRAIN)

    def _order(self, replica: str, event: StateEvent) -> None:
        self._world.journal.add("operator", f"{event} {replica}")
        if event is StateEvent.DRAIN:
            self._drained[replica] = None
        else:
            del self._drained[replica]
        for worker in self._world.workers:
            worker.order(replica, event)

    def _jump(self, replica: SimReplica) -> None:
        replica.clock_s += self._world.rng.choice((-3600.0, -2.0, 0.5, 3600.0))

    def _reset_cache(self, replica: SimReplica) -> None:
        if replica.ready and not replica.frozen:
            self._world.journal.add(replica.name, "forgets what it has cached")
            replica.engine.reset_prefix_cache()

    # Workers

    def worker(self, number: int) -> Worker:
        """A new process, told what the operator wants drained, as the supervisor does."""
        self._started += 1
        worker = Worker(self._world, number, f"w{number}-{self._started}")
        for replica in self._drained:
            worker.order(replica, StateEvent.DRAIN)
        return worker

    def _kill(self, worker: Worker) -> None:
        """It ends, and its leases with it; soon there is another in its place."""
        world = self._world
        for client in world.clients:
            if client.worker is worker and client.ask is not None:
                client.ask.router_lost = True
        worker.kill()
        world.workers.remove(worker)
        clear_row(world.board, len(world.replicas), worker.number)
        world.loop.call_later(world.rng.uniform(0.1, 1.0), self._replace, worker.number)

    async def _drain_worker(self, worker: Worker) -> None:
        finished = await worker.drain()
        if not worker.alive:
            return  # killed meanwhile
        if finished and worker.handler.in_flight:
            self._world.fail("requests", f"{worker.process.name} has drained, and works on")
        self._kill(worker)

    def _replace(self, number: int) -> None:
        world = self._world
        if all(worker.number != number for worker in world.workers):
            world.workers.append(self.worker(number))
            world.workers.sort(key=lambda worker: worker.number)
