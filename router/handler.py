"""Between data plane and models: answers what the router answers itself, routes the rest.

Also the canonical log line: one per request, when it is over.
"""

import itertools
import re
import secrets
import time
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from urllib.parse import unquote

import msgspec

from protocol.errors import (
    BadRequest,
    MethodNotAllowed,
    Overloaded,
    PathNotFound,
    ProtocolError,
    Unavailable,
)
from protocol.openai import ModelCard, ModelList
from router.config import RouterConfig
from router.core.retry_budget import RetryBudget
from router.core.ticket import Ticket
from router.dataplane.client_connection import ClientConnection
from router.dataplane.http1 import OwnAnswer, Request
from router.dataplane.route import UnderWay
from router.dataplane.server import Server
from router.gate import Gate, priority_of, tenant_of, ttft_target_of
from router.metrics import RouterMetrics
from router.model_names import ModelNames
from router.named_model import form_boundary, model_in_form, model_in_query, rename_model
from router.request_log import RequestLog
from router.request_view import (
    CHAT_PATHS,
    COMPLETION_PATHS,
    RequestView,
    prompt_bytes,
    view_of,
)
from router.routed_request import RoutedRequest
from router.served_model import ServedModel

_OWN_PATHS = frozenset({b"/health", b"/ready", b"/v1/models"})
_PROMPT_PATHS = CHAT_PATHS | COMPLETION_PATHS
_PASSED_ON = frozenset({b"/tokenize", b"/detokenize"})
_NO_MODEL = "-"
_UNQUOTED = re.compile(r"[!#-~]+")


class RouterHandler:
    """What every client connection of one process shares."""

    def __init__(
        self,
        config: RouterConfig,
        models: Mapping[str, ServedModel],
        metrics: RouterMetrics,
        log: RequestLog | None,
        now: float,
    ) -> None:
        """
        Args:
            log: Where each request leaves its line; None: nowhere.
        """
        self.limits = config.limits
        self.timeouts = config.timeouts
        self.draining = False
        self.models = models
        self.metrics = metrics
        self.in_flight = 0
        self.retry_budget = RetryBudget(
            ratio=config.retry.budget_ratio, min_per_s=config.retry.budget_min_per_s, now=now
        )
        self.max_attempts = config.retry.max_attempts
        self.resume = config.resume
        self.hedge_after_s = config.hedge.after_s
        self.server = Server(self, config.limits.max_connections)
        self.log = log
        self.gate = Gate(config, models, metrics)
        self._names = ModelNames(config.models)
        self._created = int(time.time())
        self._id_prefix = secrets.token_hex(6)
        self._id_numbers = itertools.count()

    # Handler, for the client connections

    def open(self, request: Request) -> "RoutedRequest | OwnAnswer":
        path = request.path
        if path in _OWN_PATHS or path.startswith(b"/v1/models/"):
            return self._own_answer(path, request)
        if not path.startswith(b"/v1/") and path not in _PASSED_ON:
            raise PathNotFound(f"no such path: {path.decode(errors='replace')}")
        if path in _PROMPT_PATHS and request.method not in (b"POST", b"OPTIONS"):
            raise MethodNotAllowed(f"use POST for {path.decode()}", allow="POST")
        if self.draining:
            raise Unavailable("the router is shutting down", retry_after_s=1)
        if self.in_flight >= self.limits.max_requests:
            raise Overloaded(f"{self.in_flight} requests are in flight", retry_after_s=1)
        view = _view(path, request)
        model = self.models[self._names.resolve(view.model)]
        if view.model and view.model != model.name:
            rename_model(request, model.name)
        prompt = prompt_bytes(path, view, model.assets)
        ticket = _ticket(request, view, model, prompt) if self.gate.limited else None
        return RoutedRequest(self, model, request, view, prompt, ticket, ttft_target_of(request))

    def new_request_id(self) -> bytes:
        return f"{self._id_prefix}-{next(self._id_numbers):x}".encode()

    def connection_opened(self, connection: ClientConnection) -> None:
        self.server.opened(connection)

    def connection_closed(self, connection: ClientConnection) -> None:
        self.server.closed(connection)

    def refused(self, request: Request, error: ProtocolError) -> None:
        self.metrics.requests[_NO_MODEL, _NO_MODEL, str(error.status)].inc()
        if self.log is not None:
            self.log.add(
                f"request_id={_text(request.request_id)} target={_text(request.target)}"
                f" status={error.status} error={_quoted(error.message)}"
            )

    # For routed requests

    def finished(self, routed: "RoutedRequest", exchange: UnderWay, now: float) -> None:
        request = exchange.request
        model, replica = routed.model.name, exchange.replica_id or _NO_MODEL
        self.metrics.requests[model, replica, str(exchange.status)].inc()
        tunnelled = exchange.status == HTTPStatus.SWITCHING_PROTOCOLS  # lasts as a client likes
        first_byte_s = None
        if exchange.first_byte_at is not None:
            first_byte_s = exchange.first_byte_at - request.started_at
        if not tunnelled:
            self.metrics.request_seconds[(model,)].observe(now - request.started_at)
            if first_byte_s is not None:
                self.metrics.first_byte_seconds[(model,)].observe(first_byte_s)
            if routed.ttft_target_s is not None:
                soon = first_byte_s is not None and first_byte_s <= routed.ttft_target_s
                met = soon and exchange.status == HTTPStatus.OK
                self.metrics.ttft_targets[model, "met" if met else "missed"].inc()
        if self.log is None:
            return
        usage = exchange.usage
        ttfb_s = "-" if first_byte_s is None else f"{first_byte_s:.4f}"
        resumes = f" resumes={exchange.resumes}" if exchange.resumes else ""
        error = f" error={_quoted(exchange.failure)}" if exchange.failure else ""
        self.log.add(
            f"request_id={_text(request.request_id)} target={_text(request.target)} model={model}"
            f" replica={replica} status={exchange.status} attempts={exchange.attempts}"
            f" ttfb_s={ttfb_s} total_s={now - request.started_at:.4f}"
            f" prompt_tokens={_or_dash(usage.prompt_tokens)}"
            f" matched_tokens={exchange.matched_tokens}"
            f" cached_tokens={_or_dash(usage.cached_tokens)}"
            f" completion_tokens={_or_dash(usage.completion_tokens)}{resumes}{error}"
        )

    # inside

    def _own_answer(self, path: bytes, request: Request) -> OwnAnswer:
        if request.method not in (b"GET", b"HEAD"):
            raise MethodNotAllowed(f"use GET for {path.decode()}", allow="GET, HEAD")
        if path == b"/health":
            return OwnAnswer(200, b'{"status":"ok"}')
        if path == b"/ready":
            if self.draining:
                raise Unavailable("the router is shutting down", retry_after_s=1)
            for model in self.models.values():
                if not model.fleet.routable:
                    raise Unavailable(f"no replica of {model.name} is ready", retry_after_s=1)
            return OwnAnswer(200, b'{"status":"ready"}')
        if path == b"/v1/models":
            cards = [self._card(name) for name in self._names.listed]
            return OwnAnswer(200, msgspec.json.encode(ModelList(data=cards)))
        name = unquote(path.removeprefix(b"/v1/models/").decode(errors="replace"))
        if not name:
            raise PathNotFound("no model is named after /v1/models/")
        self._names.resolve(name)
        return OwnAnswer(200, msgspec.json.encode(self._card(name)))

    def _card(self, name: str) -> ModelCard:
        root = self._names.resolve(name)
        return ModelCard(id=name, created=self._created, root=root if root != name else None)


def _ticket(
    request: Request, view: RequestView, model: ServedModel, prompt: bytes | None
) -> Ticket:
    """Raises BadRequest: its priority is none."""
    text_bytes = len(request.body if prompt is None else prompt)
    return Ticket(
        model=model.name,
        tokens=model.cost.request_tokens(text_bytes, view.expected_output_tokens),
        tenant=tenant_of(request),
        priority=priority_of(request, view.priority),
        body_bytes=len(request.body),
        work=partial(model.work_of, prompt, view.namespace) if prompt else None,
    )


def _view(path: bytes, request: Request) -> RequestView:
    """What can be read of a request; bodies of paths we do not know need not be JSON."""
    if request.upgrades:
        return RequestView(model=model_in_query(request.target))
    if path in _PROMPT_PATHS and request.method == b"POST":
        return view_of(request.body)
    boundary = form_boundary(request)
    if boundary is not None:
        return RequestView(model=model_in_form(request.body, boundary))
    try:
        return view_of(request.body) if request.body else RequestView()
    except BadRequest:
        return RequestView()


def _text(value: bytes) -> str:
    """A client's words in a log line: quoted when they could be taken for ours."""
    text = value.decode("ascii", errors="backslashreplace")
    return text if _UNQUOTED.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _or_dash(value: int | None) -> int | str:
    return "-" if value is None else value
