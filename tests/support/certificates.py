"""Certificates for tests: an authority of our own, and what it signs for this machine."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from router.dataplane.tls import TlsSide

HOST = "localhost"


class Authority:
    """Signs for `localhost` and 127.0.0.1, and makes TLS contexts of it."""

    def __init__(self) -> None:
        self.ca = trustme.CA()

    def issue(self, *names: str, expired: bool = False) -> trustme.LeafCert:
        if not expired:
            return self.ca.issue_cert(*(names or (HOST, "127.0.0.1")))
        day = timedelta(days=1)
        now = datetime.now(UTC)
        return self.ca.issue_cert(
            *(names or (HOST, "127.0.0.1")), not_before=now - 2 * day, not_after=now - day
        )

    def server_context(
        self, leaf: trustme.LeafCert | None = None, *, asks_clients: bool = False
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (leaf or self.issue()).configure_cert(context)
        if asks_clients:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client_context(self, leaf: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """Trusts what we sign."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        if leaf is not None:
            leaf.configure_cert(context)
        return context

    def listener(self) -> TlsSide:
        return TlsSide(self.server_context())

    def towards_replicas(self) -> TlsSide:
        return TlsSide(self.client_context(), HOST)

    def write_ca(self, directory: Path) -> str:
        path = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(path)
        return str(path)


def write(leaf: trustme.LeafCert, directory: Path, name: str = "router") -> dict[str, str]:
    """`cert` and `key` as a configuration names them."""
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(key)
    return {"cert": str(cert), "key": str(key)}
