"""The aiohttp application: routes, request ids, and one place where errors become answers."""

import logging
import math
import re
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web

from protocol.errors import (
    InternalError,
    MethodNotAllowed,
    PathNotFound,
    PayloadTooLarge,
    ProtocolError,
)
from protocol.resume import RESUMES_BY_TOKENS, RESUMES_FIELD
from replica.api import admin, completions, render
from replica.api.context import API, ApiContext

_log = logging.getLogger(__name__)

_REQUEST_ID = "x-request-id"
_RESUMES, _BY_TOKENS = RESUMES_FIELD.decode(), RESUMES_BY_TOKENS.decode()
_GOOD_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def build_app(api: ApiContext) -> web.Application:
    app = web.Application(
        middlewares=[_errors_as_answers], client_max_size=api.config.limits.max_body_bytes
    )
    app[API] = api
    app.on_response_prepare.append(_add_fields)
    app.add_routes(
        [
            web.post("/v1/chat/completions", completions.chat_completions),
            web.post("/v1/completions", completions.completions),
            web.post("/v1/chat/completions/render", render.render_chat),
            web.post("/v1/completions/render", render.render_completion),
            web.get("/v1/models", admin.models),
            web.post("/tokenize", admin.tokenize),
            web.post("/detokenize", admin.detokenize),
            web.get("/health", admin.health),
            web.get("/ready", admin.ready),
            web.get("/version", admin.version),
            web.get("/load", admin.load),
            web.get("/metrics", admin.metrics),
            web.get("/kv_cache/snapshot", admin.kv_cache_snapshot),
            web.post("/reset_prefix_cache", admin.reset_prefix_cache),
        ]
    )
    return app


def build_runner(api: ApiContext) -> web.AppRunner:
    """Serves `build_app`. A handler is cancelled when its client goes away."""
    return web.AppRunner(
        build_app(api),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=api.config.limits.shutdown_timeout_s,
    )


@web.middleware
async def _errors_as_answers(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    headers = {}
    try:
        return await handler(request)
    except ProtocolError as error:
        answer = error
    except web.HTTPRequestEntityTooLarge:
        limit = request.app[API].config.limits.max_body_bytes
        answer = PayloadTooLarge(f"the body is larger than {limit} bytes")
    except web.HTTPMethodNotAllowed as error:
        answer = MethodNotAllowed(
            f"{request.path} does not take {request.method}",
            allow=", ".join(sorted(error.allowed_methods)),
        )
    except web.HTTPNotFound:
        answer = PathNotFound(f"there is no {request.path}")
    except web.HTTPException:
        raise
    except ConnectionResetError:
        raise  # the client is gone; aiohttp ends the connection
    except Exception:  # noqa: BLE001 (the request's outermost edge)
        _log.exception("%s %s failed", request.method, request.path)
        answer = InternalError("the server failed on this request; its log says how")
    if isinstance(answer, MethodNotAllowed):
        headers["Allow"] = answer.allow
    if answer.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(answer.retry_after_s))
    return web.Response(
        body=answer.body(),
        status=answer.status,
        headers=headers,
        content_type="application/json",
    )


async def _add_fields(request: web.Request, response: web.StreamResponse) -> None:
    """What every answer has."""
    response.headers[_RESUMES] = _BY_TOKENS
    given = request.headers.get(_REQUEST_ID, "")
    response.headers[_REQUEST_ID] = (
        given if _GOOD_REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
    )
