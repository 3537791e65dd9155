"""The model's name found in queries and forms, and not in what only looks like one."""

import time

import pytest

from router.dataplane.http1 import Request
from router.named_model import SEARCHED_BYTES, form_boundary, model_in_form, model_in_query


def request(content_type: bytes | None) -> Request:
    headers = [] if content_type is None else [(b"content-type", content_type)]
    return Request(
        method=b"POST", target=b"/v1/x", version="1.1", headers=headers, body=b"",
        keep_alive=True, request_id=b"", started_at=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "model"),
    [
        (b"/v1/realtime?model=m", "m"),
        (b"/v1/realtime?a=1&model=a%2Fb+c", "a/b c"),
        (b"/v1/realtime?model=m&model=n", "m"),
        (b"/v1/realtime?model=%C3%A9", "é"),
        (b"/v1/realtime?model=\xc3\xa9", "é"),
        (b"/v1/realtime?model=%FF", "\ufffd"),
        (b"/v1/realtime?model=", ""),
        (b"/v1/realtime?xmodel=m", None),
        (b"/v1/realtime?a=model=m", None),
        (b"/v1/model=m", None),
        (b"/v1/realtime?", None),
    ],
)
def test_a_query_names_a_model(target: bytes, model: str | None) -> None:
    assert model_in_query(target) == model


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b"Multipart/Form-Data;charset=utf-8 ; BOUNDARY=abc", b"abc"),
        (b'multipart/form-data; boundary="a b"', b"a b"),
        (b'multipart/form-data; x="; boundary=no"; boundary=abc', b"abc"),
        (b"multipart/form-data; boundary=", None),
        (b"multipart/form-data", None),
        (b"multipart/mixed; boundary=abc", None),
        (b"application/json", None),
        (None, None),
    ],
)
def test_a_form_has_a_boundary(content_type: bytes | None, boundary: bytes | None) -> None:
    assert form_boundary(request(content_type)) == boundary


def field(head: bytes, value: bytes = b"m", before: bytes = b"--b\r\n") -> bytes:
    return before + head + b"\r\n\r\n" + value + b"\r\n--b--\r\n"


NAME = b'Content-Disposition: form-data; name="model"'


@pytest.mark.parametrize(
    ("body", "model"),
    [
        pytest.param(field(NAME), "m", id="plain"),
        pytest.param(field(NAME, b""), "", id="empty"),
        pytest.param(field(NAME, b"caf\xc3\xa9\r\nx"), "café\r\nx", id="of two lines"),
        pytest.param(field(NAME.lower()), "m", id="in lower case"),
        pytest.param(field(b"X: 1\r\n" + NAME + b"\r\nY: 2"), "m", id="among other fields"),
        pytest.param(field(NAME + b"; filename=x"), "m", id="as a file"),
        pytest.param(field(NAME, before=b"preamble\r\n--b  \r\n"), "m", id="behind a preamble"),
        pytest.param(field(NAME.replace(b"model", b"models")), None, id="another name"),
        pytest.param(field(NAME.replace(b"form-data", b"file")), None, id="no form-data"),
        pytest.param(
            field(b'Content-Disposition: form-data; name="x"; filename="; name=model"'), None,
            id="only in a file's name"),
        pytest.param(field(NAME, before=b"--bc\r\n"), None, id="another boundary"),
        pytest.param(field(NAME, before=b"x--b\r\n"), None, id="not at a line's start"),
        pytest.param(field(NAME, b"m" * 2000), None, id="too long"),
        pytest.param(field(NAME)[:-9], None, id="not ended"),
        pytest.param(b"--b\r\n" + NAME, None, id="broken off"),
        pytest.param(b"--b" * 1000, None, id="boundaries only"),
        pytest.param(b"", None, id="nothing"),
    ],
)  # fmt: skip
def test_a_form_names_a_model(body: bytes, model: str | None) -> None:
    assert model_in_form(body, b"b") == model


@pytest.mark.parametrize("before_bytes", range(SEARCHED_BYTES - 90, SEARCHED_BYTES + 10, 7))
@pytest.mark.parametrize("after_bytes", [0, SEARCHED_BYTES - 60])
def test_a_form_is_searched_at_both_ends(before_bytes: int, after_bytes: int) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n'
    body = head + b"x" * (before_bytes - len(head)) + b"\r\n" + field(NAME, b"m")
    assert model_in_form(body + b"y" * after_bytes, b"b") == "m"


@pytest.mark.parametrize(
    "filling", [b"--b\r\n", b"--", b'\r\n--b;"\\', b"x", b"\r\n--b" + b" " * 40]
)
def test_a_large_form_costs_no_more_than_its_ends(filling: bytes) -> None:
    body = filling * (2**25 // len(filling))
    began = time.perf_counter()
    assert model_in_form(body, b"b") is None
    assert time.perf_counter() - began < 1.0  # generous: it takes milliseconds
