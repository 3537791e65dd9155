"""The router's certificates: read at the start, and again on SIGHUP, all of them or none."""

import asyncio
import logging
import ssl
from pathlib import Path

import msgspec

from router.config import ReplicaConfig, RouterConfig
from router.dataplane.tls import TlsSide
from router.start import StartFailed
from router.tls_config import ListenTlsConfig, ReplicaTlsConfig

log = logging.getLogger(__name__)

_VERSIONS = {1.2: ssl.TLSVersion.TLSv1_2, 1.3: ssl.TLSVersion.TLSv1_3}
_ALPN = ["http/1.1"]
# The second when they are of different kinds, as RSA and ECDSA are.
_NOT_ITS_KEY = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
_SYSTEM_TRUST = ReplicaTlsConfig()


class Certificates:
    """What the router's connections are made with: TLS for its listener, and for each replica.

    `listen` and the values of `replicas` stay the same objects; `reload` changes what they hold.
    """

    def __init__(self, config: RouterConfig) -> None:
        """Raises StartFailed: a file cannot be used."""
        self._config = config
        self.listen, self.replicas = _read(config)

    @property
    def used(self) -> bool:
        return self.listen is not None or bool(self.replicas)

    async def reload_on(self, hangup: asyncio.Event) -> None:
        """Until cancelled: reads the files again whenever `hangup` is set."""
        while True:
            await hangup.wait()
            hangup.clear()
            await self.reload()

    async def reload(self) -> None:
        """New connections are made with what the files hold now; open ones go on as they are."""
        try:
            # Not on the event loop: the system's authorities alone take tens of milliseconds.
            listen, replicas = await asyncio.to_thread(_read, self._config)
        except StartFailed as error:
            log.error("the certificates stay as they were: %s", error)
            return
        if self.listen is not None and listen is not None:
            self.listen.context = listen.context
        for replica_id, side in self.replicas.items():
            side.context = replicas[replica_id].context
        log.info("the certificates were read again")


def _read(config: RouterConfig) -> tuple[TlsSide | None, dict[str, TlsSide]]:
    """(the listener's TLS, that of each replica that has it). Raises StartFailed."""
    listen = None
    if config.listen.tls is not None:
        listen = TlsSide(_listen_context(config.listen.tls, "listen.tls"))
    contexts: dict[ReplicaTlsConfig, ssl.SSLContext] = {}  # hundreds of replicas share a few
    replicas = {
        replica.id: _replica_side(replica, f"replica {replica.id}: tls", contexts)
        for model in config.models
        for replica in model.replicas
        if replica.is_https
    }
    return listen, replicas


def _replica_side(
    replica: ReplicaConfig, where: str, contexts: dict[ReplicaTlsConfig, ssl.SSLContext]
) -> TlsSide:
    tls = replica.tls or _SYSTEM_TRUST
    shared = msgspec.structs.replace(tls, server_name=None)
    if shared not in contexts:
        contexts[shared] = _replica_context(shared, where)
    server_name = tls.server_name or replica.address[0]
    try:  # as each connection will
        contexts[shared].wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=server_name)
    except (ValueError, TypeError) as error:
        raise StartFailed(f"{where}.server_name: {server_name!r}: {error}") from error
    return TlsSide(contexts[shared], server_name)


def _listen_context(tls: ListenTlsConfig, where: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    _settle(context)
    _load_certificate(context, tls.cert, tls.key, where)
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authorities(context, tls.client_ca, f"{where}.client_ca")
    return context


def _replica_context(tls: ReplicaTlsConfig, where: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _settle(context)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca is not None:
        _load_authorities(context, tls.ca, f"{where}.ca")
    else:
        context.load_default_certs()
    if tls.cert is not None and tls.key is not None:
        _load_certificate(context, tls.cert, tls.key, where)
    return context


def _settle(context: ssl.SSLContext) -> None:
    context.options |= ssl.OP_NO_RENEGOTIATION  # a stream may be written at any time
    context.set_alpn_protocols(_ALPN)


def _load_authorities(context: ssl.SSLContext, path: str, field: str) -> None:
    _check_readable(path, field)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise StartFailed(f"{field}: {path}: holds no certificate in PEM") from error


def _load_certificate(context: ssl.SSLContext, cert: str, key: str, where: str) -> None:
    _load_authorities(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert, f"{where}.cert")
    _check_readable(key, f"{where}.key")
    try:
        context.load_cert_chain(cert, key, password=_refuse_to_ask)
    except _Encrypted as error:
        raise StartFailed(f"{where}.key: {key}: is encrypted; the router cannot ask") from error
    except ssl.SSLError as error:
        if error.reason in _NOT_ITS_KEY:
            raise StartFailed(f"{where}.key: {key}: is not the key of {cert}") from error
        if error.library == "SSL" and error.reason not in (None, "PEM lib"):
            words = str(error.reason).lower().replace("_", " ")  # too small a key, say
            raise StartFailed(f"{where}.cert: {cert}: {words}") from error
        raise StartFailed(f"{where}.key: {key}: holds no private key in PEM") from error


class _Encrypted(Exception):
    """A key's file asks for a password."""


def _refuse_to_ask() -> str:
    raise _Encrypted


def _check_readable(path: str, field: str) -> None:
    """OpenSSL's own words do not say which file it is."""
    try:
        Path(path).read_bytes()
    except OSError as error:
        raise StartFailed(f"{field}: {path}: {error.strerror or error}") from error
