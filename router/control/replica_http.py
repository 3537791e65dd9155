"""How httpx reaches a replica over TLS: trusting whom requests and probes trust at that moment."""

import httpx

from router.dataplane.tls import TlsSide


class ReplicaTransport(httpx.AsyncBaseTransport):
    """Makes a connection for each call, with what `side` holds at that moment.

    Calls are few, and a connection that is kept would outlive the certificates it was made with.
    """

    def __init__(self, side: TlsSide) -> None:
        self._side = side
        self._context = side.context
        self._transport = self._make()

    def _make(self) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.AsyncHTTPTransport(verify=self._context, limits=limits, trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._context is not self._side.context:
            # Calls under way keep the old one alive, and nothing else does.
            self._context = self._side.context
            self._transport = self._make()
        assert self._side.server_name is not None
        request.extensions["sni_hostname"] = self._side.server_name
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()
