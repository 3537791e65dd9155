"""What OpenAI's clients send besides chats passes byte for byte, and so does the answer."""

import asyncio
import gzip
import json
import random
from typing import Any

import httpx
import pytest

from tests.support.data_plane import Call, Peer, ScriptedReplica
from tests.support.front import front

BINARY = random.Random(0).randbytes(300_000)
BOUNDARY = b"----WebKitFormBoundary7MA4YWxkTrZu0gW"
MULTIPART = b"multipart/form-data; boundary=" + BOUNDARY


def part(disposition: bytes, value: bytes, *fields: bytes) -> bytes:
    lines = [b"--" + BOUNDARY, b"Content-Disposition: form-data; " + disposition, *fields, b""]
    return b"\r\n".join(lines) + b"\r\n" + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


AUDIO = part(b'name="file"; filename="a.wav"', BINARY, b"Content-Type: audio/wav")
FORM = form(AUDIO, part(b'name="model"', b"m"), part(b'name="timestamp_granularities[]"', b"word"))
JSON = b"application/json"
REQUESTS: dict[str, tuple[bytes, bytes, bytes, bytes]] = {
    "a transcription": (b"POST", b"/v1/audio/transcriptions", MULTIPART, FORM),
    "an upload": (b"POST", b"/v1/files", MULTIPART, form(part(b'name="purpose"', b"batch"), AUDIO)),
    "embeddings of a string": (
        b"POST", b"/v1/embeddings", JSON, b'{"model":"m","input":"caf\xc3\xa9 \\u00e9"}'),
    "embeddings of a list": (
        b"POST", b"/v1/embeddings", JSON, b'{"input":["a", "b" ],\n"model":"m","dimensions":3}'),
    "embeddings of token ids": (
        b"POST", b"/v1/embeddings", JSON, b'{"model":"m","input":[[1,2,3],[4]]}'),
    "a batch of prompts": (
        b"POST", b"/v1/completions", JSON, b'{"model":"m","prompt":["a","b"], "n":2}'),
    "a batch of token lists": (
        b"POST", b"/v1/completions", JSON, b'{"model":"m","prompt":[[1,2],[3,4]]}'),
    "a prompt of token ids": (b"POST", b"/v1/completions", JSON, b'{"model":"m","prompt":[1,2,3]}'),
    "an empty batch": (b"POST", b"/v1/completions", JSON, b'{"model":"m","prompt":[]}'),
    "mixed prompts": (b"POST", b"/v1/completions", JSON, b'{"model":"m","prompt":["a",[1],2.5]}'),
    "negative tokens": (b"POST", b"/v1/completions", JSON, b'{"model":"m","prompt":[-1,2]}'),
    "numbers as they are written": (
        b"POST", b"/v1/completions", JSON,
        b'{"model":"m","prompt":"x","seed":12345678901234567890123,"temperature":1.0e0}'),
    "fields said twice": (b"POST", b"/v1/responses", JSON, b'{"a":1,"a":2,"model":"m","input":[]}'),
    "an unknown path": (b"POST", b"/v1/rerank", JSON, b'{"model":"m","documents":["x"]}'),
    "another API's messages": (
        b"POST", b"/v1/messages", JSON, b'{"model":"m","messages":[{"role":"user"}]}'),
    "bytes": (b"POST", b"/v1/odd", b"application/octet-stream", BINARY),
    "bytes that begin like JSON": (b"PUT", b"/v1/odd/x", JSON, b'{"model":' + BINARY),
    "a JSON list": (b"PATCH", b"/v1/odd", JSON, b"[1, 2]"),
    "lines of JSON": (b"POST", b"/v1/batches", b"application/x-ndjson", b'{"a":1}\n{"a":2}\n'),
    "a packed body": (b"POST", b"/v1/odd", b"text/plain", gzip.compress(b"x" * 1000, mtime=0)),
    "no body": (b"DELETE", b"/v1/files/file-1", b"", b""),
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "content_type", "body"), REQUESTS.values(), ids=REQUESTS
)
async def test_a_request_passes_byte_for_byte(
    method: bytes, path: bytes, content_type: bytes, body: bytes
) -> None:
    async def script(call: Call) -> None:
        await call.json(BINARY)

    replica = ScriptedReplica("a", script)
    async with front(replica) as router:
        query = b"?a=%2F&b=c+d&b=%C3%A9&empty=&[]=x;y"
        response = await router.http.request(
            method.decode(),
            (path + query).decode(),
            content=body,
            headers={"content-type": content_type} if content_type else {},
        )
        assert response.status_code == 200
        assert response.content == BINARY
        (call,) = replica.calls
        assert call.head.startswith(method + b" " + path + query + b" HTTP/1.1\r\n")
        assert call.body == body
        assert b"content-length: %d\r\n" % len(body) in call.head or not body
        assert b"content-type: " + content_type + b"\r\n" in call.head or not content_type


PACKED = gzip.compress(BINARY[:5000], mtime=0)
ANSWERS = {
    "sound": (b"Content-Type: audio/mpeg\r\nContent-Length: 300000\r\n", BINARY),
    "packed": (
        b"Content-Type: application/json\r\nContent-Encoding: gzip\r\nVary: Accept-Encoding\r\n"
        b"Content-Length: %d\r\n" % len(PACKED), PACKED),
    "packed, in chunks": (
        b"Content-Encoding: br\r\nTransfer-Encoding: chunked\r\n",
        b"5;x=1\r\n\x00\r\n\xff0\r\n3\r\n\r\n0\r\n0\r\nX-Trailer: 1\r\n\r\n"),
    "odd fields": (
        b"X-Empty:\r\nX-Utf: caf\xc3\xa9 \xff\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b'Etag: "a,b"\r\nContent-Length: 2\r\n', b"\x00\xff"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "body"), ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_passes_byte_for_byte(fields: bytes, body: bytes) -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body)
        await call.reader.read()

    async with front(ScriptedReplica("a", script)) as router:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", router.port))
        await peer.send(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
            b"Connection: close\r\nAccept-Encoding: gzip;q=1.0, *;q=0\r\n\r\n{}"
        )
        answer = await peer.rest()
        peer.leave()
        head, _, got = answer.partition(b"\r\n\r\n")
        assert got == body
        lines = [line.partition(b":") for line in fields.split(b"\r\n")[:-1]]
        for name, _, value in lines:
            assert name.lower() + b": " + value.lstrip() in head.split(b"\r\n")


async def test_odd_but_legal_fields_of_a_request_pass() -> None:
    async def script(call: Call) -> None:
        await call.json()

    fields = [
        b"accept: */*;q=0.5, application/json", b"x-empty: ", b"x-tab: a\tb",
        b"x-utf: \xc3\xa9\xff", b"x-!#$%&'*+-.^_`|~: 1", b"cookie: a=b; c=\"d\"",
        b"openai-organization: org-1", b"content-encoding: gzip",
        b"authorization: Bearer sk-\x7e", b"x-twice: 1", b"x-twice: 2",
    ]  # fmt: skip
    replica = ScriptedReplica("a", script)
    async with front(replica) as router:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", router.port))
        head = b"POST /v1/x?q HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
        await peer.send(head + b"\r\n".join(fields) + b"\r\n\r\n\x1f\x8b\x00")
        await peer.response()
        peer.leave()
        lines = replica.calls[0].head.split(b"\r\n")
        assert [line for line in lines if line in fields] == fields
        assert replica.calls[0].body == b"\x1f\x8b\x00"


def two_models(replicas: list[ScriptedReplica]) -> list[dict[str, Any]]:
    return [
        {
            "name": one.id,
            "aliases": [f"{one.id}-*"],
            "replicas": [{"id": one.id, "url": f"http://127.0.0.1:{one.port}"}],
        }
        for one in replicas
    ]


FORMS: dict[str, tuple[bytes, str | None]] = {
    "after the file": (FORM, "m"),
    "before the file": (form(part(b'name="model"', b"n"), AUDIO), "n"),
    "by alias": (form(AUDIO, part(b"name=model", b"n-large")), "n"),
    "with a type": (form(part(b'name="model"', b"n", b"Content-Type: text/plain"), AUDIO), "n"),
    "in the middle of large files": (form(AUDIO, part(b'name="model"', b"n"), AUDIO), None),
    "not there": (form(AUDIO), None),
}


@pytest.mark.parametrize(("body", "model"), FORMS.values(), ids=FORMS)
async def test_a_form_goes_to_the_model_it_names_and_stays_as_it_is(
    body: bytes, model: str | None
) -> None:
    async def script(call: Call) -> None:
        await call.json()

    replicas = [ScriptedReplica(name, script) for name in ("m", "n")]
    for replica in replicas:
        await replica.start()
    async with front(models=two_models(replicas)) as router:
        response = await transcribe(router.http, body)
        if model is None:
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "model"
            assert "one of: m, n" in response.json()["error"]["message"]
        else:
            assert response.headers["x-warmroute-replica"] == model
            (call,) = [call for replica in replicas for call in replica.calls]
            assert call.body == body
    for replica in replicas:
        await replica.stop()


async def test_with_one_model_a_form_needs_to_name_none_but_not_another() -> None:
    async def script(call: Call) -> None:
        await call.json()

    replica = ScriptedReplica("a", script)
    async with front(replica) as router:
        for body in (form(AUDIO), form(AUDIO, part(b'name="model"', b"gpt-4o-transcribe"))):
            assert (await transcribe(router.http, body)).status_code == 200
            assert replica.calls[-1].body == body
        response = await transcribe(router.http, form(part(b'name="model"', b"other"), AUDIO))
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


async def transcribe(http: httpx.AsyncClient, body: bytes) -> httpx.Response:
    headers = {"content-type": MULTIPART.decode()}
    return await http.post("/v1/audio/transcriptions", content=body, headers=headers)


async def test_an_alias_is_replaced_in_json_whatever_the_path_and_nothing_else_is() -> None:
    async def script(call: Call) -> None:
        await call.json()

    replica = ScriptedReplica("a", script)
    async with front(replica) as router:
        body = b'{"input": [[1, 2]], "model": "gpt-4", "x": 1.50, "y": "\\u00e9", "z": 1e400}'
        for path in ("/v1/embeddings", "/v1/rerank", "/v1/responses", "/v1/completions"):
            await router.http.post(path, content=body)
            assert json.loads(replica.calls[-1].body) == {**json.loads(body), "model": "m"}
            assert b'"x":1.50' in replica.calls[-1].body.replace(b" ", b"")
            assert b"\\u00e9" in replica.calls[-1].body
