"""Errors have OpenAI's shape; load reports have SGLang's."""

import json

import msgspec
import pytest

import protocol.errors as errors
from protocol.load_report import LoadReport, decode_load_report, encode_load_report


def tree(error: type[errors.ProtocolError]) -> list[type[errors.ProtocolError]]:
    below = [one for one in error.__subclasses__() if one.__module__ == "protocol.errors"]
    return [*below, *(deeper for one in below for deeper in tree(one))]


@pytest.mark.parametrize("error", tree(errors.ProtocolError), ids=lambda one: one.__name__)
def test_every_error_has_status_code_and_body(error: type[errors.ProtocolError]) -> None:
    assert 400 <= error.status <= 504
    assert (error.code == "internal_error") == (error is errors.InternalError)
    assert error.__name__ in (errors.__doc__ or "")
    body = json.loads(error('say "it"', param="model").body())
    assert body == {
        "error": {
            "message": 'say "it"', "type": error.type, "param": "model", "code": error.code,
        }
    }  # fmt: skip


def test_no_two_errors_share_a_code() -> None:
    codes = [error.code for error in tree(errors.ProtocolError)]
    assert len(set(codes)) == len(codes)


def test_only_what_may_pass_by_itself_is_retryable() -> None:
    for error in tree(errors.ProtocolError):
        assert error.retryable == (error.status in (408, 429, 502, 503, 504))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(["LoadStat", 1, 2, 3, 4], LoadReport(1, 2, 3, 4), id="shortest"),
        pytest.param(["LoadStat", 1, 2, 3, 4, 0], LoadReport(1, 2, 3, 4, 0), id="with-rank"),
        pytest.param(["LoadStat", 1, 2, 3, 4, None, 6], LoadReport(1, 2, 3, 4, None, 6), id="full"),
        pytest.param(["LoadStat", 1, 2, 3, 4, 0, 6, "x"], LoadReport(1, 2, 3, 4, 0, 6), id="later"),
    ],
)
def test_load_reports_of_all_lengths_are_read(raw: list[object], expected: LoadReport) -> None:
    assert decode_load_report(msgspec.msgpack.encode(raw)) == expected
    assert decode_load_report(encode_load_report(expected)) == expected


@pytest.mark.parametrize("raw", [[], ["LoadStat", 1], ["Other", 1, 2, 3, 4], 7, ["LoadStat", "1"]])
def test_what_is_no_load_report_is_refused(raw: object) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_load_report(msgspec.msgpack.encode(raw))
