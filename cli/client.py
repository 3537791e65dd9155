"""A chat client over httpx: the models a server lists, and one answer streamed as it comes."""

import ssl
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgspec

from cli.answer import Answer, AnswerError, AnswerReader, refused
from protocol.openai import ModelList

CONNECT_TIMEOUT_S = 5.0
# From sending a request or receiving a byte to the next byte: a prompt may wait in a queue.
READ_TIMEOUT_S = 600.0

_model_list_decoder = msgspec.json.Decoder(ModelList)


def open_client(url: str, api_key: str | None = None) -> httpx.Client:
    """A client of the server at `url`, with or without the scheme or the API's `/v1`.

    Raises:
        AnswerError: `url` is none.
    """
    root = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
    try:
        return httpx.Client(
            base_url=root,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            # A proxy from the environment must not come between us and a router on this machine.
            trust_env=False,
            verify=ssl.create_default_context(),  # the system's authorities, or $SSL_CERT_FILE
        )
    except httpx.InvalidURL as error:
        raise AnswerError(f"{url}: {error}") from error


def root_url(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def first_model(client: httpx.Client) -> str:
    """The first model the server lists.

    Raises:
        AnswerError: it cannot be reached, or lists none.
    """
    with _translated(client):
        response = client.get("/v1/models")
    where = f"{root_url(client)}/v1/models"
    return first_listed(response.status_code, response.content, where)


def first_listed(status: int, body: bytes, where: str) -> str:
    """The first model of the list that `where` answered.

    Raises:
        AnswerError: it is none, or empty.
    """
    if status != 200:
        raise refused(status, body)
    try:
        models = _model_list_decoder.decode(body).data
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AnswerError(f"{where} is no model list: {error}") from error
    if not models:
        raise AnswerError(f"{where} lists no model")
    return models[0].id


def stream_texts(
    client: httpx.Client, body: dict[str, Any], reader: AnswerReader
) -> Generator[str, None, None]:
    """Texts as they come. Closing it early closes the connection, which stops the server's work.

    Raises:
        AnswerError: the server cannot be reached, refuses, or breaks off.
    """
    with (
        _translated(client),
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        if response.status_code != 200:
            raise refused(response.status_code, response.read())
        reader.begin(response.headers)
        for data in response.iter_bytes():
            if text := reader.feed(data, time.perf_counter()):
                yield text


def ask(client: httpx.Client, body: dict[str, Any]) -> Answer:
    """The whole answer to a streamed chat request.

    Raises:
        AnswerError: there is none.
    """
    reader = AnswerReader(time.perf_counter())
    for _ in stream_texts(client, body, reader):
        pass
    return reader.finish(time.perf_counter())


@contextmanager
def _translated(client: httpx.Client) -> Iterator[None]:
    """httpx's errors as ours, one clear line each."""
    url = root_url(client)
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise AnswerError(f"nobody answers at {url} ({error}); is the router running?") from error
    except httpx.TimeoutException as error:
        raise AnswerError(f"{url} sent nothing for {READ_TIMEOUT_S:.0f} s") from error
    except httpx.HTTPError as error:
        raise AnswerError(f"{url} broke the connection: {error or type(error).__name__}") from error
    except httpx.InvalidURL as error:
        raise AnswerError(f"{url}: {error}") from error
