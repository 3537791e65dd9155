"""The router's configuration as frozen structs: every field with its unit, default and meaning."""

import re
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from router.core.admission_queue import QueueOrder
from router.tls_config import ListenTlsConfig, ReplicaTlsConfig

# A name, an IPv4 address, or an IPv6 one in brackets.
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%a-z]+\]")
_IPC_PATH_BYTES_MAX = 107  # of a Unix socket's address

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ListenConfig(_Section, frozen=True, kw_only=True):
    """Where clients connect.

    port: 0 picks a free one.
    workers: Processes that take requests, each on a core. They share out the limits, know of each
        other's load exactly, and each follows all KV events; one that dies is started again.
    tls: Absent: clients connect without TLS.
    """

    host: str = "0.0.0.0"
    port: Port = 8000
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    tls: ListenTlsConfig | None = None


class AdminConfig(_Section, frozen=True, kw_only=True):
    """Where operators connect: metrics and replica states. Keep it off public networks."""

    host: str = "127.0.0.1"
    port: Port = 8001


class KvEventsConfig(_Section, frozen=True, kw_only=True):
    """How to learn what a replica has in its KV cache.

    endpoint: The replica's ZMQ PUB socket.
    replay: Its replay socket; without it a gap in the events costs a snapshot.
    snapshot: SGLang's snapshot socket (`snapshot_endpoint`). Absent: GET /kv_cache/snapshot.
    topic: Subscribe to messages whose topic starts with this.
    ranks: Data-parallel ranks of the engine, each with a cache of its own. The sockets of rank r
        are at the ports above plus r.
    """

    endpoint: str
    replay: str | None = None
    snapshot: str | None = None
    topic: str = ""
    ranks: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1

    def __post_init__(self) -> None:
        for what in ("endpoint", "replay", "snapshot"):
            endpoint = getattr(self, what)
            if endpoint is None:
                continue
            _check_endpoint(what, endpoint)
            if self.ranks == 1:
                continue
            if not endpoint.startswith("tcp://"):
                raise ValueError(f"{what} must be tcp://host:port for {self.ranks} ranks")
            if int(endpoint.rpartition(":")[2]) + self.ranks > 2**16:
                raise ValueError(f"{what}: no port is left for rank {self.ranks - 1}")


class LoadReportsConfig(_Section, frozen=True, kw_only=True):
    """The replica's ZMQ PUB socket for load reports."""

    endpoint: str

    def __post_init__(self) -> None:
        _check_endpoint("endpoint", self.endpoint)


class ReplicaConfig(_Section, frozen=True, kw_only=True):
    """One replica.

    id: Unique name, shown in the x-warmroute-replica header, logs and metrics.
    url: http://host:port or https://host:port of its OpenAI-compatible API.
    tls: For https: whom to trust there. Absent: the system's authorities, for the host of the url.
    kv_events: Absent: the router guesses the replica's cache from what it routed there.
    cache_tokens: Without kv_events: how many tokens the replica can cache. What was used there
        longest ago is taken as evicted when more have been. Absent: estimated from the
        cached_tokens of its answers, from 500,000 on; without those it stays there.
    max_tokens: Tokens that may be in flight there at once, prompts and expected answers together;
        beyond it requests go elsewhere or wait: see AdmissionConfig. A request larger than the
        largest such limit of its model runs when a replica with that limit is idle. Absent: no
        limit. A good value is what its KV cache holds, or a few times that where prompts share
        much: a token counts for each request that has it, though the cache holds it once.
    continues: Whether it goes on with an assistant's message when asked to
        (`continue_final_message`), as vLLM and SGLang do: then streams that broke elsewhere are
        resumed there. Absent: those with kv_events do. Replicas of ours need not be told.
    """

    id: str
    url: str
    tls: ReplicaTlsConfig | None = None
    kv_events: KvEventsConfig | None = None
    load_reports: LoadReportsConfig | None = None
    cache_tokens: Positive | None = None
    max_tokens: Positive | None = None
    continues: bool | None = None

    def __post_init__(self) -> None:
        if not self.id or not self.id.isascii() or not self.id.isprintable():
            raise ValueError("id must be printable ASCII: it goes into a header")
        try:
            split = urlsplit(self.url)
            port = split.port
        except ValueError as error:
            raise ValueError(f"url {self.url!r}: {error}") from error
        if port == 0:
            raise ValueError(f"url {self.url!r}: a replica cannot listen on port 0")
        if split.scheme not in ("http", "https") or not split.hostname:
            raise ValueError(f"url must look like http://host:port or https://, not {self.url!r}")
        if self.tls is not None and split.scheme != "https":
            raise ValueError(f"tls needs an https:// url, not {self.url!r}")
        if split.path not in ("", "/") or split.query or split.fragment or "@" in self.url:
            raise ValueError(f"url must have no path, query or user: {self.url!r}")

    @property
    def base_url(self) -> str:
        """`url` without a slash at its end: paths begin with theirs."""
        return self.url.rstrip("/")

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) to connect to."""
        split = urlsplit(self.url)
        assert split.hostname is not None
        return split.hostname, split.port or (443 if self.is_https else 80)

    @property
    def is_https(self) -> bool:
        return urlsplit(self.url).scheme == "https"


class PolicyConfig(_Section, frozen=True, kw_only=True):
    """How a replica is chosen. `warmroute check` names the kinds there are."""

    kind: str = "prefix_aware"


class ModelConfig(_Section, frozen=True, kw_only=True):
    """A model and the replicas that serve it.

    name: What clients put in `model`, and what /v1/models lists.
    aliases: Other names for it. One that ends in * matches every name that starts so; the longest
        match wins.
    tokenizer: Directory or GGUF file with the model's chat template and vocabulary, or
        `package:NAME/FILE`. Absent: requests are matched by their text without a template, of which
        KV events know nothing; prompts given as token ids by these.
    max_prefix_tree_bytes: Memory for what its replicas hold, about. Beyond it what was used longest
        ago is forgotten; 130 bytes a block of 16 tokens are usual.
    """

    name: str
    replicas: list[ReplicaConfig]
    aliases: list[str] = []
    tokenizer: str | None = None
    policy: PolicyConfig = PolicyConfig()
    max_prefix_tree_bytes: Positive = 4 * 1024**3

    def __post_init__(self) -> None:
        if not self.name or self.name.endswith("*"):
            raise ValueError("name must be a plain model name")
        for alias in self.aliases:
            if not alias or "*" in alias[:-1]:
                raise ValueError(f"alias {alias!r}: * is only allowed at the end")


class LimitsConfig(_Section, frozen=True, kw_only=True):
    """Bounds on what clients may send and how much runs at once.

    max_head_bytes: Request line and headers together; beyond it 431.
    max_body_bytes: Request body; beyond it 413.
    max_connections: Client connections; beyond it new ones are closed at once.
    max_requests_per_connection: The last one is answered with `Connection: close`, so that clients
        come back through the load balancer in front of several routers.
    max_requests: Requests in flight; beyond it 429.
    max_connections_per_replica: Upstream connections; beyond it the replica takes no more.
    """

    max_head_bytes: Positive = 64 * 1024
    max_body_bytes: Positive = 32 * 1024 * 1024
    max_connections: Positive = 20_000
    max_requests_per_connection: Positive = 10_000
    max_requests: Positive = 10_000
    max_connections_per_replica: Positive = 1024


class AdmissionConfig(_Section, frozen=True, kw_only=True):
    """Which requests wait in the router, and in what order: when tokens in flight are limited.

    Tokens in flight are what admitted requests will occupy in KV caches, prompts and expected
    answers together. Without `max_tokens`, here or of a replica, nobody waits: engines have queues,
    too. Limits are for priorities, for fairness between tenants, and for engines without a queue.

    max_tokens: Tokens in flight, all models together; beyond it requests wait. One larger than
        this by itself runs when nothing else does. Absent: no limit.
    queue_requests: Requests that may wait; beyond it the youngest of the least urgent gets 429, or
        that of the tenant that has most of the queue. 0: none, what does not fit gets 429 at once.
    queue_bytes: Bytes of bodies that may wait; beyond it as with queue_requests.
    queue_timeout_s: So long a request may wait, from its arrival; then 429.
    aging_s: Each time a request has waited for so long, it is as urgent as priorities one smaller
        than before, down to the smallest that waits. null: never; then the less urgent may wait
        until their time is over. Priorities are -8 to 8 (others count as the nearest of these);
        smaller goes first.
    quantum_tokens: What a tenant is served in one turn, about, before the next tenant of the same
        priority and model. Smaller is fairer over short times, larger costs less time.
    queue_order: Of a tenant's requests of one priority. response_ratio: next for a replica is who
        has waited longest for what it would have to compute there, so the warm pass, where they
        are warm, until a cold one has waited for long or will soon have to be turned away. fcfs:
        first come, first served, wherever there is room.
    """

    max_tokens: Positive | None = None
    queue_requests: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 1024
    queue_bytes: Positive = 256 * 1024 * 1024
    queue_timeout_s: Seconds = 30.0
    aging_s: Seconds | None = 10.0
    quantum_tokens: Positive = 8192
    queue_order: QueueOrder = "response_ratio"


class TimeoutsConfig(_Section, frozen=True, kw_only=True):
    """Every timeout with its exact start and end, seconds, and the error code it ends in.

    request_head_s: First byte of a request to the end of its headers. 408 request_head_timed_out.
        With TLS also from a connection's begin to the end of its handshake; then it is closed.
    request_body_s: End of the headers to the end of the body. 408 request_body_timed_out.
    keep_alive_s: End of an answer (or connection) to the first byte of the next request. The
        connection is closed without a word: whatever was said would be taken as the answer to a
        request already on its way.
    connect_s: Start of a TCP connect to a replica to its end, or that of its TLS handshake. Another
        replica is tried; if none is left, 504 connect_timed_out.
    first_byte_s: Request sent to a replica to the first byte of its answer. 504
        first_byte_timed_out.
    between_bytes_s: One byte of an answer to the next, while the client is reading. The stream ends
        with an error event, code stream_timed_out. A client that takes no byte for as long is cut
        off.
    total_s: First byte of a request to the last byte of its answer, whatever happens in between:
        504 total_timed_out, or in a stream an event with that code. Absent: no bound.
    tunnel_idle_s: One byte through a tunnel (a WebSocket) to the next, either way, pings included;
        then both sides are closed. Once a side has closed its half it is between_bytes_s, if that
        is less. A tunnel is part of its request's total_s.
    drain_s: SIGTERM to the moment running answers and open tunnels are cut off.
    """

    request_head_s: Seconds = 30.0
    request_body_s: Seconds = 120.0
    keep_alive_s: Seconds = 75.0
    connect_s: Seconds = 2.0
    first_byte_s: Seconds = 600.0
    between_bytes_s: Seconds = 120.0
    total_s: Seconds | None = None
    tunnel_idle_s: Seconds = 3600.0
    drain_s: Seconds = 30.0


class RetryConfig(_Section, frozen=True, kw_only=True):
    """Retries before the first byte, never twice on one replica.

    max_attempts: Replicas tried for one request, the first included.
    budget_ratio: Retries may be at most this share of recent requests...
    budget_min_per_s: ...plus this many a second, so that a quiet router may retry too.
    """

    max_attempts: Positive = 3
    budget_ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    budget_min_per_s: Annotated[float, msgspec.Meta(ge=0)] = 5.0


class ResumeConfig(_Section, frozen=True, kw_only=True):
    """Streams whose replica dies or falls silent go on at another, as one answer to the client.

    max_resumes: How often one stream may; beyond it, it ends with an error event. 0: never.
    max_bytes: Of what was said (text, and 8 bytes a token) kept for each stream; longer ones
        cannot be resumed.
    """

    max_resumes: Annotated[int, msgspec.Meta(ge=0)] = 3
    max_bytes: Positive = 1024 * 1024


class HedgeConfig(_Section, frozen=True, kw_only=True):
    """A second replica for chats and completions whose first does not begin to answer.

    after_s: So long after the request was sent, a second replica is asked as well, if the retry
        budget affords it; whose answer begins first is relayed, the other is dropped. Absent:
        never. For answers that are not streamed this is their whole time.
    """

    after_s: Seconds | None = None


class ProbeConfig(_Section, frozen=True, kw_only=True):
    """Health probes: GET `path` of every replica each `interval_s`, answered within `timeout_s`."""

    path: str = "/ready"
    interval_s: Seconds = 1.0
    timeout_s: Seconds = 2.0

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise ValueError(f"path must begin with /, not {self.path!r}")


class PredictionConfig(_Section, frozen=True, kw_only=True):
    """How long the router believes that a prompt it just routed is (being) cached.

    ttl_s: At most this long without a word from the replica.
    grace_s: This long after the first byte, by which time its KV events have arrived; longer at a
        replica whose events are seen to take longer.
    without_events_ttl_s: For replicas that send no KV events, where belief is all there is: at
        most this long after a prompt was last used, if nothing pushes it out before.
    """

    ttl_s: Seconds = 60.0
    grace_s: Seconds = 0.25
    without_events_ttl_s: Seconds = 600.0


class RouterConfig(_Section, frozen=True, kw_only=True):
    """The whole of router.yaml."""

    models: list[ModelConfig]
    listen: ListenConfig = ListenConfig()
    admin: AdminConfig = AdminConfig()
    limits: LimitsConfig = LimitsConfig()
    admission: AdmissionConfig = AdmissionConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    retry: RetryConfig = RetryConfig()
    resume: ResumeConfig = ResumeConfig()
    hedge: HedgeConfig = HedgeConfig()
    probe: ProbeConfig = ProbeConfig()
    prediction: PredictionConfig = PredictionConfig()
    log_requests: bool = True

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models must name at least one model")
        reject_repeats("models: name", [name for m in self.models for name in (m.name, *m.aliases)])
        reject_repeats("replicas: id", [r.id for model in self.models for r in model.replicas])


def _check_endpoint(what: str, endpoint: str) -> None:
    """Raises ValueError: not an address that a ZMQ socket can connect to."""
    scheme, _, address = endpoint.partition("://")
    host, _, port = address.rpartition(":")
    local = scheme == "ipc" and 0 < len(address.encode()) <= _IPC_PATH_BYTES_MAX
    remote = (
        scheme == "tcp"
        and _HOST.fullmatch(host) is not None
        and port.isdecimal()
        and 0 < int(port) < 2**16
    )
    if not local and not remote:
        raise ValueError(f"{what} must look like tcp://host:port or ipc://path, not {endpoint!r}")


def reject_repeats(what: str, names: list[str]) -> None:
    """Raises ValueError when a name stands twice in `names`; `what` says which field they are."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is used twice")
        seen.add(name)
