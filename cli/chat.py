"""`warmroute chat`: talk to a router; each answer shows its replica and what that had cached."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import httpx

from cli.answer import Answer, AnswerError, AnswerReader
from cli.client import first_model, open_client, root_url, stream_texts
from cli.terminal import Style, count, milliseconds, percent, printable

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_VARIABLE = "WARMROUTE_API_KEY"

HISTORY_LINES_MAX = 1000

HELP = """\
/new            forget the conversation so far
/system TEXT    set the system prompt and begin anew (without TEXT: show it)
/help           this list
/quit           leave (Ctrl-D does too)
Ctrl-C stops an answer; what was said of it stays in the conversation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url", default=DEFAULT_URL, help="where the router listens (default: %(default)s)"
    )
    parser.add_argument("--model", help="default: the first one the server lists")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest")
    parser.add_argument(
        "--api-key",
        default=os.environ.get(API_KEY_VARIABLE),
        help=f"sent as a bearer token (default: ${API_KEY_VARIABLE})",
    )


def run(args: argparse.Namespace) -> int:
    """Chats until the input ends; the exit status: 0, 1 after an error, 130 after Ctrl-C."""
    out, err = sys.stdout, sys.stderr
    for stream in (sys.stdin, out, err):
        if isinstance(stream, TextIOWrapper):
            # A byte that is no text, or a character the terminal lacks, must not end the chat.
            stream.reconfigure(errors="replace")
    try:
        client = open_client(args.url, args.api_key)
    except AnswerError as error:
        return _complain(err, str(error))
    with client:
        try:
            model = args.model or first_model(client)
            conversation = Conversation(system=args.system)
            chat = Chat(client, model, args.max_tokens, args.temperature, conversation, out, err)
            if sys.stdin.isatty() and out.isatty():
                return _interactive(chat)
            return _piped(chat, sys.stdin)
        except AnswerError as error:
            return _complain(err, str(error))
        except BrokenPipeError:
            # Our reader has gone. Python would complain again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
            return 1
        except KeyboardInterrupt:
            return 130


class Conversation:
    """The messages so far; a question without an answer is taken back."""

    def __init__(self, system: str | None) -> None:
        self.system = system
        self._turns: list[dict[str, str]] = []

    def messages(self, question: str) -> list[dict[str, str]]:
        """What to send to have `question` answered."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self._turns, {"role": "user", "content": question}]

    def add(self, question: str, answer: str) -> None:
        self._turns.append({"role": "user", "content": question})
        self._turns.append({"role": "assistant", "content": answer})

    def begin_anew(self) -> None:
        self._turns.clear()

    def check(self) -> None:
        roles = [turn["role"] for turn in self._turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2), roles


class Chat:
    """One conversation over one client, shown on `out`; facts about it go to `notes`."""

    def __init__(
        self,
        client: httpx.Client,
        model: str,
        max_tokens: int | None,
        temperature: float | None,
        conversation: Conversation,
        out: TextIO,
        err: TextIO,
    ) -> None:
        self.client = client
        self.model = model
        self.sampling = {"max_tokens": max_tokens, "temperature": temperature}
        self.conversation = conversation
        self.out = out
        self.err = err
        # Whoever reads our stdout through a pipe wants the answers alone.
        self.notes = out if out.isatty() else err

    def ask(self, question: str) -> None:
        """Streams the answer to `question` and adds both to the conversation.

        Raises:
            AnswerError: there is no whole answer; the question is not kept.
            KeyboardInterrupt: the answer was stopped; what was said of it is kept.
        """
        body = {
            "model": self.model,
            "messages": self.conversation.messages(question),
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in self.sampling.items() if value is not None},
        }
        reader = AnswerReader(time.perf_counter())
        try:
            with closing(stream_texts(self.client, body, reader)) as texts:
                for text in texts:
                    self._write(printable(text) if self.out.isatty() else text)
            answer = reader.finish(time.perf_counter())
        except KeyboardInterrupt:
            if reader.text:
                self.conversation.add(question, reader.text)
            raise
        finally:
            if reader.text and not reader.text.endswith("\n"):
                self._write("\n")
        self.conversation.add(question, answer.text)
        self.note(status_line(answer))

    def command(self, line: str) -> bool:
        """Carries out a `/command`; False: leave."""
        name, _, text = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/help":
            self.note(HELP)
        elif name == "/new":
            self.conversation.begin_anew()
            self.note("A new conversation.")
        elif name == "/system" and not text.strip():
            self.note(f"System prompt: {self.conversation.system or '(none)'}")
        elif name == "/system":
            self.conversation.system = text.strip()
            self.conversation.begin_anew()
            self.note("A new conversation with this system prompt.")
        else:
            self.note(f"No command {name}; /help lists them.")
        return True

    def note(self, text: str) -> None:
        print(Style(self.notes).dim(text), file=self.notes, flush=True)

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def status_line(answer: Answer) -> str:
    """`r0 · 412 prompt tokens · 384 cached (93%) · first token 85 ms · 41.0 tokens/s`."""
    parts = [answer.replica or "replica not told"]
    if answer.prompt_tokens is not None:
        parts.append(f"{count(answer.prompt_tokens)} prompt tokens")
    if answer.cached_tokens is not None:
        parts.append(f"{count(answer.cached_tokens)} cached ({percent(answer.cached_share)})")
    parts.append(f"first token {milliseconds(answer.ttft_s)} ms")
    if answer.tokens_per_s is not None:
        parts.append(f"{answer.tokens_per_s:.1f} tokens/s")
    if answer.finish_reason == "length":
        parts.append("cut at the token limit")
    return " · ".join(parts)


def _interactive(chat: Chat) -> int:
    """Turns typed at a terminal; errors are shown and the session goes on."""
    style = Style(chat.err)
    prompt = _prompt(Style(chat.out))
    chat.note(f"{chat.model} at {root_url(chat.client)}; /help lists commands")
    with _line_history():
        while True:
            try:
                line = input(prompt).strip()
            except EOFError:
                chat.note("")
                return 0
            except KeyboardInterrupt:
                chat.note("\nCtrl-D or /quit leaves.")
                continue
            try:
                if line.startswith("/"):
                    if not chat.command(line):
                        return 0
                elif line:
                    chat.ask(line)
            except AnswerError as error:
                print(style.red(f"error: {error}"), file=chat.err, flush=True)
            except KeyboardInterrupt:
                chat.note("(stopped)")


def _piped(chat: Chat, lines: TextIO) -> int:
    """A turn a line, no prompts; the first error ends it."""
    for line in map(str.strip, lines):
        if line.startswith("/"):
            if not chat.command(line):
                break
        elif line:
            chat.ask(line)
    return 0


def _prompt(style: Style) -> str:
    """`> `; readline must be told which bytes of it take no room on the line."""
    return "\001\x1b[1m\002> \001\x1b[22m\002" if style.on else "> "


@contextmanager
def _line_history() -> Iterator[None]:
    """Line editing and a history kept between sessions, where Python was built with readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "warmroute" / "chat_history"
    with suppress(OSError):  # the first session, or a home that cannot be read
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(HISTORY_LINES_MAX)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
        except OSError as error:
            print(f"the line history was not kept: {error}", file=sys.stderr)


def _complain(err: TextIO, message: str) -> int:
    print(Style(err).red(f"error: {message}"), file=err, flush=True)
    return 1
