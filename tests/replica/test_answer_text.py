"""An answer that goes on after a cut tells the text that was not told, whatever was held back."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt.vocabulary import Vocabulary
from replica.api.text import AnswerText, Piece, pieces
from replica.engine.client import Generation
from replica.engine.messages import TokenOutput
from replica.metrics import ReplicaMetrics, RequestTimes
from replica.tokenizer import Detokenizer
from tests.support.fake_engine import make_config

# Whole characters and parts of them, of one to four bytes; the last two are special.
TOKENS = [
    *(b"a", b"b", b"ab", b"b\xc3", b"\xc3", b"\xa9", b"\xe4", b"\xb8\x96", b"\xe4\xb8", b"\x96"),
    *(b"\xf0\x9f", b"\x98\x80", b"\x80a", b"\xff", b"", b"<special>", b"<end>"),
]
END = len(TOKENS) - 1
VOCABULARY, SPECIAL = Vocabulary(TOKENS), frozenset({END - 1, END})
STOPS = st.text("ab\u4e16\ufffdé😀", min_size=1, max_size=4)
METRICS = ReplicaMetrics(make_config())


def new_answer(stops: Sequence[str]) -> AnswerText:
    return AnswerText(Detokenizer(VOCABULARY, SPECIAL), stops)


class Batches(Generation):
    """Outputs that arrive in batches of these sizes, then one by one."""

    def __init__(self, outputs: Sequence[TokenOutput], sizes: Sequence[int]) -> None:
        super().__init__(1)
        self._left = [(output, 0.0) for output in outputs]
        self._sizes = iter(sizes)

    async def take(self) -> list[tuple[TokenOutput, float]]:
        assert self._left, "asked for more than there is"
        size = next(self._sizes, 1)
        batch, self._left = self._left[:size], self._left[size:]
        return batch


def outputs_of(token_ids: Sequence[int], finish: str) -> list[TokenOutput]:
    """The engine's, the last one with `finish`."""
    return [
        TokenOutput(
            sequence_id=1,
            token_id=token_id,
            finish=finish if number == len(token_ids) else None,
            cached_tokens=0,
            queue_time_s=None,
        )
        for number, token_id in enumerate(token_ids, start=1)
    ]


def told_by(generation: Generation, answer: AnswerText) -> list[Piece]:
    async def collect() -> list[Piece]:
        return [piece async for piece in pieces(generation, answer, RequestTimes(METRICS, 0.0))]

    return asyncio.run(collect())


@settings(derandomize=True, max_examples=500, deadline=None)
@given(
    token_ids=st.lists(st.integers(0, END), min_size=1, max_size=30),
    stops=st.lists(STOPS, max_size=3),
    ignore_end=st.booleans(),
    sizes=st.tuples(*[st.lists(st.integers(1, 4), max_size=30)] * 2),
    data=st.data(),
)
def test_text_before_and_after_a_cut_is_the_unbroken_text(
    token_ids: list[int],
    stops: list[str],
    ignore_end: bool,
    sizes: tuple[list[int], list[int]],
    data: st.DataObject,
) -> None:
    stop_token_ids = set() if ignore_end else {END}
    finish = "length"
    if not ignore_end and END in token_ids:
        token_ids, finish = token_ids[: token_ids.index(END) + 1], "stop"
    outputs = outputs_of(token_ids, finish)
    unbroken = told_by(Batches(outputs, sizes[0]), new_answer(stops))
    text = "".join(piece.text for piece in unbroken)
    generated = [token_id for piece in unbroken for token_id in piece.token_ids]
    assert generated == token_ids[: len(generated)]
    assert unbroken[-1].completion_tokens == len(generated)
    if not stops:
        spoken = (TOKENS[i] for i in token_ids if i not in SPECIAL)
        assert text == b"".join(spoken).decode(errors="replace")

    cut = data.draw(st.integers(0, len(generated)), label="cut")
    cut_off = new_answer(stops)
    before = "".join(cut_off.take(one.token_id, one.finish) for one in outputs[:cut])
    answer = new_answer(stops)
    assert answer.replay(generated[:cut], stop_token_ids, len(token_ids)) == cut
    assert (answer.num_tokens, answer.finish) == (cut, cut_off.finish)
    if cut == len(generated):
        assert (before, answer.finish) == (text, unbroken[-1].finish)
        return
    after = told_by(Batches(outputs[cut:], sizes[1]), answer)
    assert before + "".join(piece.text for piece in after) == text
    assert [i for piece in after for i in piece.token_ids] == generated[cut:]
    assert (after[-1].finish, after[-1].completion_tokens) == (
        unbroken[-1].finish,
        unbroken[-1].completion_tokens,
    )


def test_a_piece_has_all_tokens_since_the_piece_before() -> None:
    generation = Batches(outputs_of([0, 6, 7, 1, 0, 4, END], "stop"), [2])
    told = told_by(generation, new_answer(["bab"]))
    assert [(piece.token_ids, piece.text) for piece in told] == [
        ([0, 6], "a"),
        ([7], "世"),
        # The b and the a after it might have begun a stop string, the broken character not.
        ([1, 0, 4, END], "ba\ufffd"),
    ]


@pytest.mark.parametrize(
    ("said", "stops", "stop_token_ids", "max_tokens", "taken", "finish"),
    [
        ([0, END], [], {END}, 9, 2, "stop"),
        ([0, END, 0], [], {END}, 9, 2, "stop"),
        ([0, END, 0], [], set(), 9, 3, None),
        ([0, 1], [], {1}, 9, 2, "stop"),
        ([0, 1, 0], ["ab"], {END}, 9, 2, "stop"),
        ([0, 1], [], {END}, 2, 2, "length"),
        ([0, 1, 0], [], {END}, 2, 2, "length"),
        ([0, 1, 0], [], {END}, None, 3, None),
        ([0, 4], ["\ufffd"], {END}, 2, 2, "stop"),
        ([0, 4, END], ["\ufffd"], {END}, 3, 3, "stop"),
        ([], [], {END}, 1, 0, None),
    ],
    ids=[
        "end token",
        "something after the end token",
        "end token ignored",
        "a stop token that has text",
        "something after a stop string",
        "as many as there may be",
        "more than there may be",
        "no limit",
        "the broken character at the limit completes a stop string",
        "the broken character before the end token does",
        "nothing",
    ],
)
def test_a_replay_ends_where_the_answer_did(
    said: list[int],
    stops: list[str],
    stop_token_ids: set[int],
    max_tokens: int | None,
    taken: int,
    finish: str | None,
) -> None:
    answer = new_answer(stops)
    assert answer.replay(said, stop_token_ids, max_tokens) == taken
    assert answer.finish == finish


def test_what_an_answer_held_back_is_told_when_there_is_no_room_to_go_on() -> None:
    answer = new_answer(["abba"])
    assert answer.replay([1, 0, 1, 4], {END}, None) == 4
    assert answer.end("length") == "ab\ufffd"
    assert answer.finish == "length"
