"""Chat users for locust: streamed conversations of several turns over shared documents.

    locust -f loadtests/locustfile.py --headless -u 8 -r 2 -t 2m --host http://127.0.0.1:8000

Beside locust's own numbers (POST: the whole answer, to its last byte) it reports TTFT as a metric
and, at the end, the hit rate, the replicas and TTFT of warm and cold prompts. A refused request
and a broken stream are failures, and a run with one, or with no answer at all, exits with 1.
Answers still streaming when the time is up are dropped and count as nothing.
"""

import itertools
import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import requests
import urllib3
from locust import HttpUser, events, task
from locust.env import Environment
from locust.exception import StopUser

from cli.answer import Answer, AnswerError, AnswerReader, StreamBroken, refused
from cli.chat import Conversation
from cli.client import first_listed
from loadtests.tally import Tally
from loadtests.workloads import ConversationSource

PATH = "/v1/chat/completions"
CONNECT_TIMEOUT_S = 5.0
# From byte to byte; the first one waits for the queue and the whole prompt.
READ_TIMEOUT_S = 120.0

tally = Tally()
user_numbers = itertools.count()
began_s = time.perf_counter()


class ChatUser(HttpUser):
    """Holds one conversation after the other, and reads an answer before asking on."""

    def on_start(self) -> None:
        options = self.options
        # A proxy from the environment must not come between us and a router on this machine.
        self.client.trust_env = False
        self.source = ConversationSource(
            seed=options.seed,
            user=next(user_numbers),
            documents=options.documents,
            zipf_exponent=options.zipf,
            words=options.words,
            turns_min=1,
            turns_max=options.turns_max,
        )
        self.model: str = options.model

    @property
    def options(self) -> Namespace:
        options = self.environment.parsed_options
        assert isinstance(options, Namespace)
        return options

    @task
    def converse(self) -> None:
        # Asked for here and not in on_start, where locust shows a traceback for a stopped user.
        self.model = self.model or self._first_model()
        script = self.source.next()
        talk = Conversation(system=script.system)
        for question in script.questions:
            answer = self._ask(talk.messages(question))
            # After a failure too: a user who is refused waits before trying again.
            time.sleep(self.source.think_s(self.options.think_s))
            if answer is None:
                return
            talk.add(question, answer.text)

    def _ask(self, messages: list[dict[str, str]]) -> Answer | None:
        """The answer, reported to locust and the tally; None when it failed."""
        body = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "max_tokens": self.options.max_tokens,
        }
        sent_s = time.perf_counter()
        with self.client.post(
            PATH,
            json=body,
            stream=True,
            catch_response=True,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        ) as response:
            try:
                answer = _read(response, sent_s)
            except AnswerError as error:
                response.request_meta["response_time"] = (time.perf_counter() - sent_s) * 1000
                response.failure(str(error))
                tally.fail(str(error))
                return None
            # locust took the time when the head came: it is the last byte's that counts.
            response.request_meta["response_time"] = answer.total_s * 1000
            response.request_meta["response_length"] = len(answer.text.encode())
            response.success()
        self._report_ttft(answer)
        return answer

    def _report_ttft(self, answer: Answer) -> None:
        tally.add(answer)
        self.environment.events.request.fire(
            request_type="TTFT",
            name=PATH,
            response_time=answer.ttft_s * 1000,
            response_length=0,
            exception=None,
            context={},
        )

    def _first_model(self) -> str:
        path = "/v1/models"
        with self.client.get(path, catch_response=True, timeout=READ_TIMEOUT_S) as response:
            try:
                _check_reached(response)
                return first_listed(response.status_code, response.content, path)
            except AnswerError as error:
                response.failure(str(error))
                tally.fail(str(error))
                raise StopUser from error


def _read(response: Any, sent_s: float) -> Answer:
    """Reads the streamed answer to its end.

    Raises:
        AnswerError: it was refused, or broke off.
    """
    _check_reached(response)
    try:
        if response.status_code != 200:
            raise refused(response.status_code, response.content)
        reader = AnswerReader(sent_s)
        headers: Mapping[str, str] = response.headers
        reader.begin(headers)
        # None: each chunk as it comes. That holds for chunked bodies; others would come whole.
        for data in response.iter_content(chunk_size=None):
            reader.feed(data, time.perf_counter())
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise StreamBroken(f"the connection broke: {type(error).__name__}") from error
    finally:
        response.close()
    return reader.finish(time.perf_counter())


def _check_reached(response: Any) -> None:
    """locust makes up an answer for a server that could not be reached: status 0, and `error`."""
    if response.status_code == 0:
        raise StreamBroken(f"no answer: {type(response.error).__name__}")


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: Any) -> None:
    group = parser.add_argument_group("conversations")
    group.add_argument("--model", default="", help="default: the first one the server lists")
    group.add_argument("--seed", type=int, default=1, help="the same seed asks the same questions")
    group.add_argument("--documents", type=int, default=8, help="how many system prompts there are")
    group.add_argument("--zipf", type=float, default=1.0, help="exponent of their popularity")
    group.add_argument("--words", type=int, default=350, help="length of each")
    group.add_argument("--turns-max", type=int, default=6, help="longest conversation")
    group.add_argument("--think-s", type=float, default=2.0, help="mean pause before a question")
    group.add_argument("--max-tokens", type=int, default=32, help="longest answer")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Environment, **_: Any) -> None:
    global began_s
    began_s = time.perf_counter()


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def finish(environment: Environment, **_: Any) -> None:
    tally.check()
    print("\n".join(["", *tally.lines(time.perf_counter() - began_s)]))
    if not tally.passed or environment.stats.total.num_failures:
        environment.process_exit_code = 1
