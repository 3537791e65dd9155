"""The error body every process answers with, in OpenAI's shape, and the errors that make one.

ProtocolError
├── BadRequest             400  the client's fault; names the field
│   └── ContextTooLong     400  the prompt does not fit the model's context
├── ModelNotFound          404  lists the models there are
├── PathNotFound           404
├── MethodNotAllowed       405
├── RequestTimedOut        408  it did not arrive whole in time
│   ├── HeadTimedOut       408  nor did its head
│   └── BodyTimedOut       408  its head did, its body did not
├── PayloadTooLarge        413
├── HeadersTooLarge        431
├── Overloaded             429  a bound was reached; try again later
├── InternalError          500  a bug of ours; the log has the traceback
├── UpstreamFailed         502  a replica broke the connection or the protocol
├── Unavailable            503  nobody can answer now
└── TimedOut               504  it was not answered in time
    ├── ConnectTimedOut    504  no connection to a replica was made in time
    ├── FirstByteTimedOut  504  a replica had the request and did not begin to answer
    ├── StreamTimedOut     504  a replica fell silent in the middle of an answer
    └── TotalTimedOut      504  from the request's first byte to the answer's last it took too long
"""

from typing import ClassVar

import msgspec


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """`{"error": {...}}`, as OpenAI's API returns and its SDKs parse."""

    error: ErrorDetail


class ProtocolError(Exception):
    """An answer that is an error: status, machine-readable code, and the field at fault if any."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON body, ready to send."""
        return encode_error(self.message, type=self.type, param=self.param, code=self.code)


class BadRequest(ProtocolError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class ContextTooLong(BadRequest):
    code = "context_length_exceeded"


class ModelNotFound(ProtocolError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class PathNotFound(ProtocolError):
    status = 404
    type = "invalid_request_error"
    code = "path_not_found"


class MethodNotAllowed(ProtocolError):
    """`allow` is for the Allow header a 405 must have (RFC 9110 §15.5.6), like "GET, HEAD"."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        allow: str = "",
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.allow = allow


class RequestTimedOut(ProtocolError):
    status = 408
    type = "invalid_request_error"
    code = "request_timed_out"
    retryable = True


class HeadTimedOut(RequestTimedOut):
    code = "request_head_timed_out"


class BodyTimedOut(RequestTimedOut):
    code = "request_body_timed_out"


class PayloadTooLarge(ProtocolError):
    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class HeadersTooLarge(ProtocolError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class Overloaded(ProtocolError):
    status = 429
    type = "overloaded_error"
    code = "overloaded"
    retryable = True


class InternalError(ProtocolError):
    """What a client may know of a bug of ours: nothing but that it was one."""


class UpstreamFailed(ProtocolError):
    status = 502
    type = "upstream_error"
    code = "upstream_failed"
    retryable = True


class Unavailable(ProtocolError):
    status = 503
    type = "unavailable_error"
    code = "unavailable"
    retryable = True


class TimedOut(ProtocolError):
    status = 504
    type = "timeout_error"
    code = "timed_out"
    retryable = True


class ConnectTimedOut(TimedOut):
    code = "connect_timed_out"


class FirstByteTimedOut(TimedOut):
    code = "first_byte_timed_out"


class StreamTimedOut(TimedOut):
    code = "stream_timed_out"


class TotalTimedOut(TimedOut):
    code = "total_timed_out"


_encoder = msgspec.json.Encoder()


def encode_error(
    message: str, *, type: str, param: str | None = None, code: str | None = None
) -> bytes:
    """An error body as JSON bytes."""
    return _encoder.encode(
        ErrorBody(error=ErrorDetail(message=message, type=type, param=param, code=code))
    )
