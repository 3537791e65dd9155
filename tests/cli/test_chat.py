"""`warmroute chat` against a fake server: turns, commands, stopping, errors, pipes, terminals."""

import argparse
import io
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import chat
from cli.answer import Answer, AnswerReader, RequestRefused, StreamBroken, refused
from cli.terminal import printable, table
from tests.support.fake_openai_server import MODEL, running

ROOT = Path(__file__).parents[2]
# SIGINT as a shell leaves it to what it starts in the foreground, however the tests were started.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "import argparse, sys; from cli import chat; parser = argparse.ArgumentParser();"
    "chat.add_arguments(parser); sys.exit(chat.run(parser.parse_args()))"
)
# A session of its own with stdin as its controlling terminal: Ctrl-C there reaches it alone.
AT_A_TERMINAL = f"import os; os.login_tty(0); {PROGRAM}"


@pytest.fixture
def server():
    with running() as fake:
        yield fake


@pytest.fixture
def say(monkeypatch, capsys):
    """Runs the chat with lines on a piped stdin; (exit status, stdout, stderr)."""

    def _say(url: str, lines: str, *arguments: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        chat.add_arguments(parser)
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        status = chat.run(parser.parse_args(["--url", url, *arguments]))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return _say


def test_through_pipes_stdout_holds_the_answers_alone_and_stderr_the_facts(server, say):
    status, out, err = say(server.url, "hello there\n")
    assert (status, out) == (0, "The cache is warm.\n")
    assert re.fullmatch(
        r"r1 · 3 prompt tokens · 0 cached \(0%\) · first token \d+ ms · [\d,.]+ tokens/s\n", err
    )


def test_a_second_turn_sends_the_first_one_along_and_finds_it_cached(server, say):
    _, _, err = say(server.url, "hello there\nand more\n")
    roles = [message["role"] for message in server.requests[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert "11 prompt tokens · 3 cached (27%)" in err.splitlines()[1]


def test_the_request_carries_what_the_arguments_say_and_nothing_else(server, say):
    say(server.url, "hi\n", "--model", "m", "--system", "Be brief.", "--max-tokens", "7")
    assert server.requests == [
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "hi"},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 7,
        }
    ]


def test_the_first_model_listed_is_the_default(server, say):
    say(server.url + "/v1/", "hi\n")
    assert server.requests[0]["model"] == MODEL


def test_commands_change_the_conversation_and_are_never_sent(server, say):
    status, _, err = say(
        server.url, "one\n/system Be kind.\n/system\ntwo\n/new\nthree\n/nonsense\n/help\n/quit\nx\n"
    )
    assert status == 0
    assert [len(request["messages"]) for request in server.requests] == [1, 2, 2]
    assert "System prompt: Be kind." in err
    assert "No command /nonsense" in err
    assert "/quit" in err


@pytest.mark.parametrize(
    ("question", "line"),
    [
        pytest.param("refuse", "error: HTTP 429: the queue is full", id="error body"),
        pytest.param(
            "crash", "error: HTTP 500: <h1>Internal error</h1>", id="body that is no JSON"
        ),
        pytest.param("error", "error: the answer broke off: the replica died", id="error event"),
        pytest.param("break", "broke the connection", id="connection lost"),
    ],
)
def test_an_answer_that_fails_is_one_clear_line_and_exit_status_1(server, say, question, line):
    status, _, err = say(server.url, f"{question}\nnever sent\n")
    assert status == 1
    assert line in err
    assert err.count("\n") == 1
    assert len(server.requests) == 1


def test_a_server_that_is_down_is_one_clear_line(say):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        status, out, err = say(url, "hi\n")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: nobody answers at {url}")
    assert err.count("\n") == 1


def test_at_a_terminal_ctrl_c_stops_the_answer_but_not_the_session(server, tmp_path):
    with Terminal(server.url, tmp_path) as terminal:
        terminal.read_until("/help lists commands")
        terminal.answer_prompt("forever\r")
        terminal.read_until("word word")
        terminal.type("\x03")
        terminal.read_until("(stopped)")
        assert server.client_left.wait(timeout=10), "the connection was not closed"
        terminal.answer_prompt("hello\r")
        terminal.read_until("The cache is warm.")
        terminal.read_until("prompt tokens")
        terminal.answer_prompt("refuse\r")
        terminal.read_until("error: HTTP 429")
        terminal.answer_prompt("\x04")
        assert terminal.process.wait(timeout=10) == 0
    assert server.requests[1]["messages"][1]["content"].startswith("word word")
    assert "hello" in (tmp_path / "warmroute" / "chat_history").read_text()


def test_ctrl_c_through_pipes_ends_the_chat_with_status_130(server):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--url", server.url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        process.stdin.write(b"forever\n")
        process.stdin.close()
        assert process.stdout.read(4) == b"word"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert process.stderr.read() == b""
    assert server.client_left.wait(timeout=10)


def test_bytes_that_are_no_text_are_asked_about_all_the_same(server):
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--url", server.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        input=b"caf\xe9\n",
        capture_output=True,
        timeout=30,
    )
    assert (process.returncode, process.stdout) == (0, b"The cache is warm.\n")
    assert server.requests[0]["messages"][0]["content"] == "caf\N{REPLACEMENT CHARACTER}"


def test_an_answer_cannot_move_the_cursor():
    assert printable("\x1b[2Jsafe\x9b1m\r\x07\tand\nsound é 🙂") == "[2Jsafe1m\tand\nsound é 🙂"


class TestAnswerReader:
    def test_times_count_from_the_sending_to_the_first_text_whatever_the_chunking(self):
        reader = AnswerReader(10.0)
        reader.begin({"x-warmroute-replica": "r7", "x-warmroute-matched-tokens": "32"})
        assert reader.feed(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n', 10.5) == ""
        assert reader.feed(b'data: {"choices":[{"delta":{"cont', 10.6) == ""
        assert reader.feed(b'ent":"a"}}]}\n\n', 11.0) == "a"
        end = (
            b'data: {"choices":[{"delta":{"content":"b"},"finish_reason":"tool_calls"}]}\n\n'
            b'data: {"choices":[],"usage":{"prompt_tokens":64,"completion_tokens":3,'
            b'"total_tokens":67,"prompt_tokens_details":{"cached_tokens":16}}}\n\n'
        )
        assert reader.feed(end, 13.0) == "b"
        assert reader.feed(b"data: [DONE]\n\n", 13.5) == ""
        answer = reader.finish(14.0)
        assert (answer.text, answer.replica, answer.matched_tokens) == ("ab", "r7", 32)
        assert (answer.ttft_s, answer.total_s, answer.tokens_per_s) == (1.0, 4.0, 1.0)
        assert (answer.cached_share, answer.finish_reason) == (0.25, "tool_calls")

    def test_a_server_that_tells_nothing_leaves_nothing_but_text_and_times(self):
        reader = AnswerReader(0.0)
        reader.begin({"x-warmroute-matched-tokens": "many"})
        reader.feed(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n', 1.0)
        answer = reader.finish(1.0)
        assert (answer.replica, answer.matched_tokens, answer.cached_share) == (None, None, None)
        assert chat.status_line(answer) == "replica not told · first token 1,000 ms"

    def test_thoughts_and_plain_completions_are_tokens_too_and_the_gaps_between_are_kept(self):
        reader = AnswerReader(0.0)
        events = [
            (1.0, '{"choices":[{"delta":{"role":"assistant","content":""}}]}'),
            (2.0, '{"choices":[{"delta":{"reasoning":"hm"}}]}'),
            (2.5, '{"choices":[{"delta":{"reasoning_content":"hm"}}]}'),
            (3.5, '{"choices":[{"text":"a"}]}'),
            (4.0, '{"choices":[{"text":"","finish_reason":"stop"}]}'),
        ]
        said = [reader.feed(f"data: {event}\n\n".encode(), now_s) for now_s, event in events]
        assert said == ["", "", "", "a", ""]
        assert (reader.first_s, reader.last_s, reader.gaps_s) == (2.0, 4.0, [0.5, 1.0])

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "ended before the answer did"),
            (b"data: [DONE]\n\n", "holds no token"),
            (b"data: <html>\n\n", "not a stream of answers"),
            (b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', "not a stream of answers"),
            (b'data: {"error":{"message":"lost","code":502}}\n\n', "broke off: lost"),
            (b'data: {"error":"lost"}\n\n', "broke off: lost"),
        ],
        ids=["nothing", "only the end", "not JSON", "not UTF-8", "error event", "error as text"],
    )
    def test_what_is_no_whole_answer_is_an_error(self, data, message):
        with pytest.raises(StreamBroken, match=message):
            read_whole(data)

    def test_a_refusal_without_words_says_so(self):
        error = refused(502, b"")
        assert isinstance(error, RequestRefused)
        assert (str(error), error.status) == ("HTTP 502: no reason given", 502)

    def test_a_refusal_that_is_not_utf_8_is_told_as_far_as_it_is(self):
        assert str(refused(500, b'{"error": "\xff lost"}')) == 'HTTP 500: {"error": "\ufffd lost"}'


def test_a_conversation_keeps_questions_and_answers_in_turn():
    conversation = chat.Conversation(system=None)
    conversation.add("q", "a")
    conversation.check()
    assert [m["content"] for m in conversation.messages("next")] == ["q", "a", "next"]
    conversation.begin_anew()
    conversation.check()
    assert conversation.messages("next") == [{"role": "user", "content": "next"}]


def test_a_table_sets_numbers_to_the_right():
    lines = table(["name", "n"], [["a", "1,000"], ["long", "-"]])
    assert lines == ["name      n", "a     1,000", "long      -"]


def read_whole(data: bytes) -> Answer:
    reader = AnswerReader(0.0)
    reader.feed(data, 1.0)
    return reader.finish(1.0)


class Terminal:
    """The chat on a pseudo-terminal, typed at and read from as a person would."""

    def __init__(self, url: str, state: Path) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(state)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", AT_A_TERMINAL, "--url", url],
            cwd=ROOT,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._screen = b""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=10)
        os.close(self._ours)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def answer_prompt(self, text: str) -> None:
        """Types once the prompt is there: keys before it meet a terminal in another mode."""
        self.read_until("> ")
        self.type(text)

    def read_until(self, text: str, timeout_s: float = 20.0) -> None:
        """Reads on until `text` has come, and forgets everything up to it."""
        deadline_s = time.monotonic() + timeout_s
        while text.encode() not in self._screen:
            left_s = deadline_s - time.monotonic()
            ready, _, _ = select.select([self._ours], [], [], max(left_s, 0))
            assert ready, f"{text!r} did not come; the screen holds {self._screen[-2000:]!r}"
            self._screen += os.read(self._ours, 4096)
        self._screen = self._screen.partition(text.encode())[2]
