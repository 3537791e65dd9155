"""What clients get wrong, through the router: the right status, and the field by its name."""

from typing import Any

import pytest

from tests.support.stack import MAX_MODEL_LEN, MODEL, Stack

pytestmark = pytest.mark.processes

HELLO = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

BAD_FIELDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no messages": (CHAT, {}, "messages"),
    "messages are text": (CHAT, {"messages": "Hello"}, "messages"),
    "no message": (CHAT, {"messages": []}, "messages"),
    "message without role": (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
    "content is a number": (
        CHAT,
        {"messages": [{"role": "user", "content": 5}]},
        "messages[0].content",
    ),
    "image part": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].type",
    ),
    "negative temperature": (CHAT, {"messages": HELLO, "temperature": -0.1}, "temperature"),
    "absurd temperature": (CHAT, {"messages": HELLO, "temperature": 1e9}, "temperature"),
    "temperature is text": (CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature"),
    "top_p zero": (CHAT, {"messages": HELLO, "top_p": 0}, "top_p"),
    "top_p above one": (CHAT, {"messages": HELLO, "top_p": 1.5}, "top_p"),
    "top_k negative": (CHAT, {"messages": HELLO, "top_k": -5}, "top_k"),
    "max_tokens zero": (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    "max_tokens negative": (CHAT, {"messages": HELLO, "max_tokens": -1}, "max_tokens"),
    "max_tokens is a fraction": (CHAT, {"messages": HELLO, "max_tokens": 1.5}, "max_tokens"),
    "seed is text": (CHAT, {"messages": HELLO, "seed": "x"}, "seed"),
    "stop is a number": (CHAT, {"messages": HELLO, "stop": 5}, "stop"),
    "empty stop": (CHAT, {"messages": HELLO, "stop": [""]}, "stop"),
    "two answers": (CHAT, {"messages": HELLO, "n": 2}, "n"),
    "log probabilities": (CHAT, {"messages": HELLO, "logprobs": True}, "logprobs"),
    "a penalty": (CHAT, {"messages": HELLO, "presence_penalty": 1}, "presence_penalty"),
    "JSON output": (
        CHAT,
        {"messages": HELLO, "response_format": {"type": "json_object"}},
        "response_format",
    ),
    "stream is text": (CHAT, {"messages": HELLO, "stream": "yes"}, "stream"),
    "no prompt": (COMPLETIONS, {}, "prompt"),
    "empty prompt": (COMPLETIONS, {"prompt": ""}, "prompt"),
    "prompt is a number": (COMPLETIONS, {"prompt": 5}, "prompt"),
    "two prompts": (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt"),
    "token beyond the vocabulary": (COMPLETIONS, {"prompt": [10**6]}, "prompt"),
    "negative token": (COMPLETIONS, {"prompt": [-1]}, "prompt"),
    "echo": (COMPLETIONS, {"prompt": "a", "echo": True}, "echo"),
}


@pytest.mark.parametrize(("path", "fields", "names"), BAD_FIELDS.values(), ids=BAD_FIELDS.keys())
def test_a_bad_field_is_a_400_that_names_it(
    stack: Stack, path: str, fields: dict[str, Any], names: str
) -> None:
    response = stack.http.post(path, json={"model": MODEL, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == names, error
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b'{"model": 5}'],
    ids=["empty", "cut off", "array", "string", "not UTF-8", "model is a number"],
)
def test_a_body_that_is_no_json_object_is_a_400(stack: Stack, body: bytes) -> None:
    for path in (CHAT, COMPLETIONS):
        response = stack.http.post(path, content=body)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"]


def test_a_prompt_longer_than_the_context_is_a_400_with_both_lengths(stack: Stack) -> None:
    response = stack.http.post(COMPLETIONS, json={"model": MODEL, "prompt": [5] * 5000})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "5000" in error["message"]
    assert str(MAX_MODEL_LEN) in error["message"]


def test_a_body_over_the_limit_is_a_413(stack: Stack) -> None:
    response = stack.http.post(CHAT, content=b'{"messages": "' + b"x" * 33 * 1024 * 1024 + b'"}')
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", CHAT, 405), ("POST", "/v1/models", 405)],
)
def test_a_wrong_path_or_method_says_so(stack: Stack, method: str, path: str, status: int) -> None:
    response = stack.http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_tokenize_and_detokenize_pass_through(stack: Stack) -> None:
    tokens = stack.http.post("/tokenize", json={"model": MODEL, "prompt": "Hello, 猫!"}).json()
    back = stack.http.post("/detokenize", json={"model": MODEL, "tokens": tokens["tokens"]}).json()
    assert back["prompt"] == "Hello, 猫!"
    assert tokens["count"] == len(tokens["tokens"])
