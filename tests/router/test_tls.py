"""Certificates as the configuration names them: what is wrong with one is said in one line."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from router.config import RouterConfig
from router.start import StartFailed
from router.tls import Certificates
from tests.support.certificates import Authority, write

AUTHORITY = Authority()


def config(
    listen_tls: dict[str, Any] | None = None,
    url: str = "https://a",
    replica_tls: dict[str, Any] | None = None,
) -> RouterConfig:
    replica = {"id": "a", "url": url, "tls": replica_tls}
    models = [{"name": "m", "replicas": [replica]}]
    return msgspec.convert({"models": models, "listen": {"tls": listen_tls}}, RouterConfig)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://a", ("a", 443)),
        ("https://a:8443/", ("a", 8443)),
        ("https://[::1]", ("::1", 443)),
        ("http://a", ("a", 80)),
    ],
)
def test_https_has_a_port_of_its_own(url: str, address: tuple[str, int]) -> None:
    replica = config(url=url).models[0].replicas[0]
    assert replica.address == address
    assert replica.is_https == url.startswith("https")


FILES = {"cert": "c", "key": "k"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no key": ({"listen_tls": {"cert": "c"}}, r"required field `key` - at `\$\.listen\.tls`"),
    "unknown version": (
        {"listen_tls": {**FILES, "min_version": 1.1}},
        r"min_version must be 1\.2 or 1\.3, not 1\.1 - at `\$\.listen\.tls`",
    ),
    "tls without https": (
        {"url": "http://a", "replica_tls": {}},
        r"tls needs an https:// url, not 'http://a' - at `\$\.models\[0\]\.replicas\[0\]`",
    ),
    "another scheme": ({"url": "ftp://a"}, "url must look like"),
    "half a client certificate": ({"replica_tls": {"cert": "c"}}, "cert and key need each other"),
    "authorities for nothing": (
        {"replica_tls": {"verify": False, "ca": "c"}},
        "ca is of no use with verify: false",
    ),
}


@pytest.mark.parametrize(("sections", "error"), WRONG.values(), ids=WRONG)
def test_a_wrong_section_is_an_error_that_names_the_field(
    sections: dict[str, Any], error: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=error):
        config(**sections)


def encrypt(leaf: trustme.LeafCert) -> bytes:
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def rsa_key() -> bytes:
    return AUTHORITY.ca.issue_cert("a", key_type=trustme.KeyType.RSA).private_key_pem.bytes()


BAD_FILES: dict[str, tuple[str, Callable[[trustme.LeafCert], bytes | None], str]] = {
    "no certificate": ("cert", lambda leaf: None, "No such file or directory"),
    "no key": ("key", lambda leaf: None, "No such file or directory"),
    "a key for a certificate": (
        "cert",
        lambda leaf: leaf.private_key_pem.bytes(),
        "holds no certificate in PEM",
    ),
    "a certificate for a key": (
        "key",
        lambda leaf: leaf.cert_chain_pems[0].bytes(),
        "holds no private key in PEM",
    ),
    "an empty key": ("key", lambda leaf: b"", "holds no private key in PEM"),
    "another key": (
        "key",
        lambda leaf: AUTHORITY.issue().private_key_pem.bytes(),
        "is not the key of {cert}",
    ),
    "a key of another kind": ("key", lambda leaf: rsa_key(), "is not the key of {cert}"),
    "an encrypted key": ("key", encrypt, "is encrypted; the router cannot ask"),
}


@pytest.mark.parametrize("where", ["listen.tls", "replica a: tls"])
@pytest.mark.parametrize(("field", "content", "error"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_cannot_be_used_is_an_error_that_names_field_and_file(
    where: str,
    field: str,
    content: Callable[[trustme.LeafCert], bytes | None],
    error: str,
    tmp_path: Path,
) -> None:
    leaf = AUTHORITY.issue()
    files = write(leaf, tmp_path)
    path = Path(files[field])
    written = content(leaf)
    path.unlink() if written is None else path.write_bytes(written)
    section = "listen_tls" if where == "listen.tls" else "replica_tls"
    with pytest.raises(StartFailed) as failed:
        Certificates(config(**{section: files}))
    assert str(failed.value) == f"{where}.{field}: {path}: " + error.format(**files)


@pytest.mark.parametrize(("section", "field"), [("listen_tls", "client_ca"), ("replica_tls", "ca")])
def test_authorities_that_cannot_be_read_are_an_error(
    section: str, field: str, tmp_path: Path
) -> None:
    files = write(AUTHORITY.issue(), tmp_path)
    with pytest.raises(StartFailed, match=rf"{field}: /nowhere: No such file or directory$"):
        Certificates(config(**{section: {**files, field: "/nowhere"}}))
    with pytest.raises(StartFailed, match=rf"{field}: .*: holds no certificate in PEM$"):
        Certificates(config(**{section: {**files, field: files["key"]}}))


@pytest.mark.parametrize("name", [".a", "a" * 70, "a\0b"], ids=["dot", "long", "zero"])
def test_a_server_name_that_can_be_nobodys_is_an_error(name: str) -> None:
    with pytest.raises(StartFailed, match=r"^replica a: tls\.server_name: "):
        Certificates(config(replica_tls={"server_name": name}))


async def test_reloading_changes_all_or_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write(AUTHORITY.issue(), tmp_path)
    ca = AUTHORITY.write_ca(tmp_path)
    certificates = Certificates(config(files, replica_tls={"ca": ca}))
    listen, replica = certificates.listen, certificates.replicas["a"]
    assert listen is not None
    assert (listen.server_name, replica.server_name) == (None, "a")
    hangup = asyncio.Event()
    reloading = asyncio.create_task(certificates.reload_on(hangup))
    for content, changes in [(b"junk", False), (Authority().ca.cert_pem.bytes(), True)]:
        before = (listen.context, replica.context)
        Path(ca).write_bytes(content)  # noqa: ASYNC240 - tiny
        caplog.clear()
        with caplog.at_level(logging.INFO):
            hangup.set()
            async with asyncio.timeout(10):
                while not caplog.messages:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        assert (listen.context is not before[0]) == (replica.context is not before[1]) == changes
        assert caplog.messages == [
            "the certificates were read again"
            if changes
            else "the certificates stay as they were: "
            f"replica a: tls.ca: {ca}: holds no certificate in PEM"
        ]
    reloading.cancel()


def test_replicas_that_trust_the_same_share_what_that_takes() -> None:
    replicas = [{"id": f"{n}", "url": f"https://host{n}"} for n in range(3)]
    models = [{"name": "m", "replicas": replicas}]
    sides = Certificates(msgspec.convert({"models": models}, RouterConfig)).replicas
    assert len({id(side.context) for side in sides.values()}) == 1
    assert [side.server_name for side in sides.values()] == ["host0", "host1", "host2"]
