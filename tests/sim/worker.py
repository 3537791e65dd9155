"""A router's worker process in a world: the parts that `router.app` puts together, all real.

Only what they reach the world with is not: its loop, its network, and its way to KV events.
"""

import asyncio
from collections.abc import Collection, Coroutine, Iterator, MutableSet
from random import Random
from typing import TYPE_CHECKING, Any

from router.app import _end_long_waits, _expire_predictions, _watch
from router.control.pace import Pace
from router.control.subscription import SubscriptionStatus
from router.core.ids import Namespace, ReplicaId
from router.core.lease_board import LeaseBoard
from router.core.states import StateEvent
from router.dataplane.client_connection import ClientConnection
from router.dataplane.http1 import OwnAnswer, Request
from router.dataplane.pool import ReplicaPool
from router.dataplane.route import UnderWay
from router.handler import RouterHandler
from router.metrics import RouterMetrics
from router.routed_request import RoutedRequest
from router.served_model import ReplicaAssignment, ServedModel
from tests.sim.model import ASSETS, NAME
from tests.sim.network import End, Process
from tests.sim.pubsub import Post

if TYPE_CHECKING:
    from tests.sim.world import World

_PAUSE_S = 0.002


class Ordered(MutableSet[Any]):
    """A set in the order of adding: a set of objects has that of their addresses, by chance."""

    def __init__(self) -> None:
        self._items: dict[Any, None] = {}

    def add(self, value: Any) -> None:
        self._items[value] = None

    def discard(self, value: Any) -> None:
        self._items.pop(value, None)

    def __contains__(self, value: object) -> bool:
        return value in self._items

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class SimPace(Pace):
    """No time passes while the router works: so others run in between at random moments."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self._world = world

    async def pause(self) -> None:
        rng = self._world.rng
        if rng.random() < self._world.network.faults.pause:
            await asyncio.sleep(_PAUSE_S * rng.random())


class CheckedModel(ServedModel):
    """Tells the checkers of choices, and of what events have changed."""

    worker: "Worker"

    def assign(
        self,
        prompt: bytes | None,
        namespace: Namespace,
        *,
        output_tokens_max: int | None,
        streaming: bool,
        excluded: Collection[ReplicaId],
        now: float,
        ttft_target_s: float | None = None,
    ) -> ReplicaAssignment:
        checks = self.worker.world.checks
        checks.before_choice(self.worker, namespace, prompt or b"")
        assignment = super().assign(
            prompt,
            namespace,
            output_tokens_max=output_tokens_max,
            streaming=streaming,
            excluded=excluded,
            now=now,
            ttft_target_s=ttft_target_s,
        )
        checks.chosen(self.worker, assignment.replica_id, excluded)
        return assignment

    def events_changed(self, cache_id: str, status: SubscriptionStatus) -> None:
        super().events_changed(cache_id, status)
        self.worker.world.checks.events_applied(self.worker, cache_id, status)


class CheckedHandler(RouterHandler):
    """Counts the requests it has opened and finished."""

    opened = ended = 0
    worker: "Worker"

    def open(self, request: Request) -> "RoutedRequest | OwnAnswer":
        routed = super().open(request)
        self.opened += 1
        return routed

    def finished(self, routed: RoutedRequest, exchange: UnderWay, now: float) -> None:
        super().finished(routed, exchange, now)
        self.ended += 1
        self.worker.world.checks.finished(self.worker, exchange)


class Worker:
    """
    Attributes:
        drained: The replicas that the operator wants no new requests at.
    """

    def __init__(self, world: "World", number: int, name: str) -> None:
        self.world = world
        self.number = number
        self.alive = True
        self.draining = False
        self.drained: set[ReplicaId] = set()
        self.process = Process(name, connected=self._connected)
        config = world.scenario.router_config(name)
        rng = world.rng
        metrics = RouterMetrics()
        (model_config,) = config.models
        pools: dict[ReplicaId, ReplicaPool] = {}
        for one in model_config.replicas:
            pools[one.id] = ReplicaPool(
                *one.address,
                max_connections=config.limits.max_connections_per_replica,
                connect_timeout_s=config.timeouts.connect_s,
                max_head_bytes=config.limits.max_head_bytes,
            )
            pools[one.id]._open = Ordered()  # type: ignore[assignment]
        self.pools = pools
        board = LeaseBoard(
            world.board, [one.id for one in model_config.replicas],
            workers=world.scenario.workers, worker=number,
        )  # fmt: skip
        self.model = CheckedModel(
            model_config, ASSETS, pools, config.prediction, metrics,
            Random(rng.getrandbits(64)), board,
        )  # fmt: skip
        self.model.worker = self
        self.handler = CheckedHandler(config, {NAME: self.model}, metrics, None, world.loop.time())
        self.handler.worker = self
        self.handler.server._connections = Ordered()  # type: ignore[assignment]
        self.config = config
        self.post = Post(world.network, world.replicas, rng)
        self._tasks: list[asyncio.Task[None]] = []
        pace = SimPace(world)
        for one in model_config.replicas:
            _watch(one, self.model, config, self.post, None, self.post, pace, self)  # type: ignore[arg-type]
        self.create_task(_expire_predictions(self.model))
        self.create_task(_end_long_waits(self.handler.gate))
        self.create_task(self.handler.server.watch_timeouts())
        world.network.start(self.process, self._accept)
        world.journal.add(name, "starts")

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """As a TaskGroup's."""
        task = self.world.loop.create_task(coroutine)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.world.failed(task.exception())

    def _accept(self) -> asyncio.Protocol:
        return ClientConnection(self.handler, self.world.loop)

    def _connected(self, end: End) -> None:
        """It makes a connection to a replica."""
        end.on_write = lambda data: self.world.checks.asked(self, end.peer.process.name, data)

    def order(self, replica: ReplicaId, event: StateEvent) -> None:
        """The operator's: drain, or undrain."""
        if event is StateEvent.DRAIN:
            self.drained.add(replica)
        else:
            self.drained.discard(replica)
        self.model.apply(replica, event, self.world.loop.time())

    async def drain(self) -> bool:
        """SIGTERM: takes nothing new; whether all that ran has ended by itself."""
        self.world.journal.add(self.process.name, "drains")
        self.draining = self.handler.draining = True
        self.world.network.stop_listening(self.process)
        return await self.handler.server.drain(self.config.timeouts.drain_s)

    def kill(self) -> None:
        """SIGKILL: nothing it still does counts, and nobody hears of it."""
        self.alive = False
        self.model.fleet._board = None
        self.world.network.kill(self.process)
        for task in self._tasks:
            task.cancel()
        for connection in list(self.handler.server._connections):
            connection.connection_lost(None)
        self.world.journal.add(self.process.name, "is killed")

    @property
    def synced(self) -> bool:
        """Whether it follows all events there are, and every replica is ready."""
        return all(replica.state.value == "ready" for replica in self.model.fleet.replicas) and all(
            status.synced for status in self.model.subscriptions.values()
        )
