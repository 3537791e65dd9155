"""The model a request names elsewhere than in a JSON body: in its query, or in a form's field.

A form is looked through at both ends only: clients put a file before its fields or behind them, and
the file may be large.

Sources: RFC 7578 §4.2 (a form's fields), RFC 2046 §5.1.1 (boundaries).
"""

import re
from urllib.parse import quote, unquote_plus

from router.dataplane.http1 import Request
from router.request_view import with_model

# Of a form: so much of its beginning, and of its end.
SEARCHED_BYTES = 64 * 1024
_FIELDS_MAX = 64  # at either end
_FIELD_HEAD_BYTES_MAX = 512  # more is not this field
_MODEL_BYTES_MAX = 1024

_FORM = b"multipart/form-data"
_MODEL_IN_QUERY = re.compile(rb"(?:^|(?<=&))model=([^&]*)")
_DISPOSITION = re.compile(rb"^content-disposition:[ \t]*form-data[ \t]*(;.*)$", re.I | re.M)
_PARAMETER = re.compile(rb';[ \t]*([^=;\s]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^;\s]*)')


def model_in_query(target: bytes) -> str | None:
    """What `?model=` says, as in OpenAI's /v1/realtime."""
    found = _MODEL_IN_QUERY.search(target.partition(b"?")[2])
    return unquote_plus(found[1].decode(errors="replace")) if found else None


def form_boundary(request: Request) -> bytes | None:
    """What separates the fields of a multipart form; None: it is not one."""
    content_type = request.header(b"content-type")
    if content_type is None or content_type[: len(_FORM)].lower() != _FORM:
        return None
    return _parameter(content_type[len(_FORM) :], b"boundary") or None


def model_in_form(body: bytes, boundary: bytes) -> str | None:
    """The form's `model`, if it is a field near the beginning or the end."""
    delimiter = b"--" + boundary
    model = _model_between(body, delimiter, 0, SEARCHED_BYTES)
    if model is None and len(body) > SEARCHED_BYTES:
        start = max(SEARCHED_BYTES, len(body) - SEARCHED_BYTES) - len(delimiter)
        model = _model_between(body, delimiter, start, len(body))
    return model


def rename_model(request: Request, model: str) -> None:
    """Has it ask for `model`: replicas do not know the router's aliases. The rest is kept.

    A form stays as it is: a replica that minds the name must know the alias itself.
    """
    if request.upgrades:
        path, _, query = request.target.partition(b"?")
        renamed = b"model=" + quote(model, safe="").encode()
        request.target = path + b"?" + _MODEL_IN_QUERY.sub(lambda _: renamed, query)
    elif form_boundary(request) is None:
        request.body = with_model(request.body, model)


def _model_between(body: bytes, delimiter: bytes, start: int, end: int) -> str | None:
    """The value of the first field named model whose delimiter lies in [start, end)."""
    head_at = start
    for _ in range(_FIELDS_MAX):
        at = body.find(delimiter, head_at, end)
        if at < 0:
            return None
        head_at = at + len(delimiter)
        starts_line = at == 0 or body[at - 2 : at] == b"\r\n"
        head_end = body.find(b"\r\n\r\n", head_at, head_at + _FIELD_HEAD_BYTES_MAX)
        if starts_line and head_end >= 0 and _is_model(body[head_at:head_end]):
            value_at = head_end + 4
            limit = value_at + _MODEL_BYTES_MAX + 2 + len(delimiter)
            value_end = body.find(b"\r\n" + delimiter, value_at, limit)
            if value_end < 0:
                return None
            return body[value_at:value_end].decode(errors="replace")
    return None


def _is_model(head: bytes) -> bool:
    """Whether it is that of a field of this name: what stands between delimiter and value."""
    if not head.lstrip(b" \t").startswith(b"\r\n"):
        return False  # it only begins like the delimiter
    disposition = _DISPOSITION.search(head)
    return disposition is not None and _parameter(disposition[1], b"name") == b"model"


def _parameter(parameters: bytes, name: bytes) -> bytes | None:
    for key, value in _PARAMETER.findall(parameters):
        if key.lower() == name:
            return bytes(value[1:-1] if value[:1] == b'"' else value)
    return None
