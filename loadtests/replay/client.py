"""Sends requests over aiohttp, reads their streams, and says what became of each."""

import asyncio
from collections.abc import Callable

import aiohttp

from cli.answer import REPLICA_HEADER, REQUEST_ID_HEADER, AnswerError, AnswerReader, refused
from cli.terminal import printable
from loadtests.replay.drive import Clock, Turn
from loadtests.replay.outcome import BROKEN, CONNECT, INTERRUPTED, TIMEOUT, Outcome
from loadtests.replay.plan import Planned

# An idle connection is not used again after so long: servers close theirs (uvicorn's after 5 s),
# and a request that meets that would fail by our doing.
_KEEP_ALIVE_S = 2.0
_REFUSAL_BYTES_MAX = 64 * 1024
_MESSAGE_LETTERS_MAX = 200


def open_session(api_key: str | None, timeout_s: float) -> aiohttp.ClientSession:
    """A session with as many connections as there are requests at once."""
    headers = {"content-type": "application/json"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    return aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
    )


class Sender:
    """A `drive.Send`: each request's outcome is told once, also when it is cancelled."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        clock: Clock,
        start_s: float,
        ended: Callable[[Outcome], None],
    ) -> None:
        self._session = session
        self._url = url
        self._clock = clock
        self._start_s = start_s
        self._ended = ended
        self.in_flight = 0
        self.in_flight_max = 0

    async def __call__(self, request: Planned, turn: Turn) -> None:
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        exchange = _Exchange(self._clock)
        try:
            await exchange.run(self._session, self._url, request.body)
        except asyncio.CancelledError:
            exchange.fail(INTERRUPTED, "")
            raise
        finally:
            self.in_flight -= 1
            self._ended(exchange.outcome(request, turn, self._start_s))


class _Exchange:
    """One request and its answer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sent_s = clock.now_s()
        self._reader = AnswerReader(self._sent_s)
        self._status: int | None = None
        self._error: str | None = None
        self._message = ""
        self._replica: str | None = None
        self._request_id: str | None = None

    def fail(self, error: str, message: str) -> None:
        self._error = error
        self._message = printable(" ".join(message.split()))[:_MESSAGE_LETTERS_MAX]

    async def run(self, session: aiohttp.ClientSession, url: str, body: bytes) -> None:
        try:
            async with session.post(url, data=body, allow_redirects=False) as response:
                await self._read(response)
        except TimeoutError:
            self.fail(TIMEOUT, "")
        except aiohttp.ClientConnectorError as error:
            self.fail(CONNECT, str(error))
        except aiohttp.ClientError as error:
            self.fail(BROKEN, str(error) or type(error).__name__)
        except AnswerError as error:
            self.fail(BROKEN, str(error))

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        self._status = response.status
        self._replica = response.headers.get(REPLICA_HEADER)
        self._request_id = response.headers.get(REQUEST_ID_HEADER)
        if response.status != 200:
            body = await response.content.read(_REFUSAL_BYTES_MAX)
            self.fail(f"http {response.status}", str(refused(response.status, body)))
            return
        self._reader.begin(response.headers)
        async for data in response.content.iter_any():
            self._reader.feed(data, self._clock.now_s())
        self._reader.finish(self._clock.now_s())

    def outcome(self, request: Planned, turn: Turn, start_s: float) -> Outcome:
        reader, usage = self._reader, self._reader.usage
        details = usage.prompt_tokens_details if usage else None
        first_s, last_s = reader.first_s, reader.last_s
        events = len(reader.gaps_s) + 1 if first_s is not None else None
        return Outcome(
            number=request.number,
            scheduled_s=turn.scheduled_s - start_s,
            ready_s=turn.ready_s - start_s,
            sent_s=self._sent_s - start_s,
            first_token_s=None if first_s is None else first_s - start_s,
            last_token_s=None if last_s is None else last_s - start_s,
            ended_s=self._clock.now_s() - start_s,
            status=self._status,
            error=self._error,
            message=self._message,
            prompt_tokens_wanted=request.prompt_tokens,
            output_tokens_wanted=request.output_tokens,
            prompt_tokens=usage.prompt_tokens if usage else None,
            cached_tokens=details.cached_tokens if details else None,
            output_tokens=usage.completion_tokens if usage else events,
            replica=self._replica,
            request_id=self._request_id,
            gaps_s=reader.gaps_s,
        )
