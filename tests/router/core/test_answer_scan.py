"""What is read off an answer that passes through."""

import pytest

from router.core.answer_scan import AnswerScan

USAGE = b'"usage":{"prompt_tokens":%b,"completion_tokens":3}}'


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"12", 12),
        (b"999999999", 999_999_999),
        (b"1" + b"0" * 9, None),
        (b"1" * 400, None),
        (b"1" * 5000, None),
        (b"-5", None),
    ],
    ids=["usual", "most", "too many", "no float", "no int", "negative"],
)
def test_counts_of_tokens_are_numbers_that_can_be(written: bytes, read: int | None) -> None:
    scan = AnswerScan(is_stream=False)
    scan.feed(b"{" + USAGE % written)
    usage = scan.usage()
    assert (usage.prompt_tokens, usage.completion_tokens) == (read, 3)
