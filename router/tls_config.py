"""The TLS sections of the router's configuration: for its listener, and for each replica."""

import msgspec

MIN_VERSIONS = (1.2, 1.3)


class ListenTlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Clients connect over TLS. SIGHUP reads the files again, for connections made from then on.

    cert: PEM file: the certificate, then those between it and a root.
    key: PEM file: its private key, not encrypted.
    client_ca: PEM file. Only clients with a certificate from one of these are let in. Absent: all.
    min_version: 1.2 or 1.3.
    """

    cert: str
    key: str
    client_ca: str | None = None
    min_version: float = 1.2

    def __post_init__(self) -> None:
        if self.min_version not in MIN_VERSIONS:
            raise ValueError(f"min_version must be 1.2 or 1.3, not {self.min_version}")


class ReplicaTlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to trust at a replica's https:// address. SIGHUP reads these files again, too.

    ca: PEM file: the authorities that may have signed its certificate. Absent: the system's.
    server_name: What its certificate must be for. Absent: the host of its url.
    verify: false: whoever answers there is believed to be the replica.
    cert: PEM file: our certificate, for a replica that asks for one.
    key: PEM file: its private key, not encrypted.
    """

    ca: str | None = None
    server_name: str | None = None
    verify: bool = True
    cert: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key need each other")
        if not self.verify and self.ca is not None:
            raise ValueError("ca is of no use with verify: false")
