"""`python -m loadtests.demo`: scripted conversations that show what a warm KV cache is worth.

Every round asks one question in every conversation, one request at a time, so each time to first
token is the replica's own and no queue's. Pairs of conversations share a long document.
"""

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from cli.answer import Answer, AnswerError
from cli.chat import DEFAULT_URL, Conversation
from cli.client import ask, first_model, open_client, root_url
from cli.terminal import Style, count, milliseconds, percent, table
from loadtests.stack import StackFailed, answers, child_stack, up_command, wait_until_ready
from loadtests.workloads import scripted_conversations

DEFAULT_CONFIG = Path("configs/local.yaml")
LOG = Path(".run/demo.log")
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")

COLD = "new document"
SHARED = "known document"
WARM = "later turn"
KINDS = (COLD, SHARED, WARM)


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One answered question. `kind`: COLD, SHARED (another conversation's document) or WARM."""

    conversation: int
    turn: int
    kind: str
    answer: Answer


class KindSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the turns of one kind; None: no replica told."""

    kind: str
    turns: int
    prompt_tokens: float | None
    cached_share: float | None
    ttft_s: float
    ttft_per_prompt_token_s: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    progress = Progress()
    try:
        with ExitStack() as resources:
            client = resources.enter_context(open_client(args.url))
            _bring_up(root_url(client), args.start, resources, progress)
            turns = play(client, args, progress)
    except (AnswerError, StackFailed) as error:
        print(Style(sys.stderr).red(f"error: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(as_json(turns) if args.json else "\n".join(report(turns)))
    return 0


def play(
    client: httpx.Client, args: argparse.Namespace, progress: Callable[[str], None]
) -> list[Turn]:
    """Plays the script and returns its turns in the order they were asked.

    Raises:
        AnswerError: a question was not answered.
    """
    model = args.model or first_model(client)
    script = scripted_conversations(args.seed, args.conversations, args.turns, args.words)
    talks = [Conversation(system=conversation.system) for conversation in script]
    known_documents: set[int] = set()
    turns: list[Turn] = []
    for turn in range(args.turns):
        for index, (conversation, talk) in enumerate(zip(script, talks, strict=True)):
            progress(f"question {len(turns) + 1} of {args.turns * args.conversations}")
            question = conversation.questions[turn]
            answer = ask(client, _body(model, talk.messages(question), args.max_tokens))
            talk.add(question, answer.text)
            first_kind = SHARED if conversation.document in known_documents else COLD
            known_documents.add(conversation.document)
            kind = WARM if turn else first_kind
            turns.append(Turn(conversation=index + 1, turn=turn + 1, kind=kind, answer=answer))
    progress("")
    return turns


def report(turns: Sequence[Turn]) -> list[str]:
    """The lines to print: every turn, the kinds of turns, the replicas, the prediction."""
    rows = [
        [
            count(turn.conversation),
            count(turn.turn),
            turn.answer.replica or "-",
            count(turn.answer.prompt_tokens),
            count(turn.answer.cached_tokens),
            count(turn.answer.matched_tokens),
            milliseconds(turn.answer.ttft_s),
        ]
        for turn in turns
    ]
    headings = ["conversation", "turn", "replica", "prompt", "cached", "predicted", "TTFT ms"]
    lines = [*table(headings, rows), "", *_kind_lines(summaries(turns)), ""]
    replicas = Counter(turn.answer.replica or "not told" for turn in turns)
    named = ", ".join(f"{name} ({number} turns)" for name, number in sorted(replicas.items()))
    lines.append(f"Replicas: {named}")
    if (exact := exact_predictions(turns)) is not None:
        lines.append(f"Cached tokens predicted exactly: {exact} of {len(turns)} turns")
    return lines


def summaries(turns: Sequence[Turn]) -> list[KindSummary]:
    """One for each kind that occurs, the coldest first."""
    kinds = ((kind, [turn.answer for turn in turns if turn.kind == kind]) for kind in KINDS)
    return [_summary(kind, of_kind) for kind, of_kind in kinds if of_kind]


def exact_predictions(turns: Sequence[Turn]) -> int | None:
    """How many turns had exactly as many tokens cached as predicted; None: nobody told."""
    told = [
        turn.answer.matched_tokens == turn.answer.cached_tokens
        for turn in turns
        if turn.answer.matched_tokens is not None and turn.answer.cached_tokens is not None
    ]
    return sum(told) if told else None


def as_json(turns: Sequence[Turn]) -> str:
    """`{"turns": [...], "summary": [...], "predicted_exactly": N}`."""
    whole = {
        "turns": turns,
        "summary": summaries(turns),
        "predicted_exactly": exact_predictions(turns),
    }
    return msgspec.json.format(msgspec.json.encode(whole)).decode()


class Progress:
    """One line on stderr that is written over at a terminal; elsewhere nothing."""

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()


def _bring_up(url: str, config: Path, resources: ExitStack, progress: Progress) -> None:
    """Waits for the stack at `url`; where none is, runs one until `resources` close."""
    if answers(url):
        wait_until_ready(url, progress)
        return
    if urlsplit(url).hostname not in LOOPBACK_HOSTS:
        raise StackFailed(f"nobody answers at {url}")
    if not config.is_file():
        raise StackFailed(f"nobody answers at {url}, and there is no {config} to start one from")
    print(f"Nobody answers at {url}: starting {config}, log in {LOG}", file=sys.stderr)
    resources.enter_context(child_stack(up_command(config), url, LOG, progress))


def _body(model: str, messages: list[dict[str, str]], max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "max_tokens": max_tokens,
    }


def _summary(kind: str, of_kind: Sequence[Answer]) -> KindSummary:
    told = [one for one in of_kind if one.prompt_tokens and one.cached_tokens is not None]
    prompt_tokens = sum(answer.prompt_tokens or 0 for answer in told)
    cached_tokens = sum(answer.cached_tokens or 0 for answer in told)
    told_ttft_s = sum(answer.ttft_s for answer in told)
    return KindSummary(
        kind=kind,
        turns=len(of_kind),
        prompt_tokens=prompt_tokens / len(told) if told else None,
        cached_share=cached_tokens / prompt_tokens if told else None,
        ttft_s=sum(answer.ttft_s for answer in of_kind) / len(of_kind),
        ttft_per_prompt_token_s=told_ttft_s / prompt_tokens if told else None,
    )


def _kind_lines(kinds: Sequence[KindSummary]) -> list[str]:
    rows = [
        [
            kind.kind,
            count(kind.turns),
            "-" if kind.prompt_tokens is None else f"{kind.prompt_tokens:,.0f}",
            percent(kind.cached_share),
            milliseconds(kind.ttft_s),
            _per_token(kind),
        ]
        for kind in kinds
    ]
    lines = table(["mean of", "turns", "prompt", "cached", "TTFT ms", "TTFT ms/prompt token"], rows)
    by_kind = {kind.kind: kind.ttft_per_prompt_token_s for kind in kinds}
    cold, warm = by_kind.get(COLD), by_kind.get(WARM)
    if cold and warm:
        times = f"{cold / warm:.1f} times"
        lines += ["", f"Per prompt token, later turns began {times} as fast as cold ones."]
    if any(kind.kind == COLD and (kind.cached_share or 0) > 0.5 for kind in kinds):
        lines.append("The documents were cached before this run; --seed N takes other ones.")
    return lines


def _per_token(kind: KindSummary) -> str:
    if kind.ttft_per_prompt_token_s is None:
        return "-"
    return f"{kind.ttft_per_prompt_token_s * 1000:.2f}"


def _exit_on_signal(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.demo", description=__doc__)
    parser.add_argument("--url", default=DEFAULT_URL, help="default: %(default)s")
    parser.add_argument(
        "--start",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="CONFIG",
        help="what `warmroute up` starts when nobody answers at the URL (default: %(default)s)",
    )
    parser.add_argument("--model", help="default: the first one the server lists")
    parser.add_argument("--conversations", type=_positive, default=4, metavar="N")
    parser.add_argument("--turns", type=_positive, default=4, metavar="N")
    parser.add_argument("--words", type=_positive, default=350, help="length of a document")
    parser.add_argument("--max-tokens", type=_positive, default=16, help="longest answer")
    parser.add_argument("--seed", type=int, default=7, help="another seed, other documents")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


if __name__ == "__main__":
    # SystemExit unwinds the stack: the child is stopped on the way out.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    sys.exit(main())
