"""Workloads: the same seed gives the same text, and documents share what they should."""

import pytest

from loadtests.workloads import (
    ConversationSource,
    document,
    scripted_conversations,
    zipf_weights,
)


def source(seed: int = 1, user: int = 0) -> ConversationSource:
    return ConversationSource(
        seed=seed, user=user, documents=8, zipf_exponent=1.0, words=40, turns_min=1, turns_max=6
    )


def test_the_same_seed_and_user_hold_the_same_conversations():
    one, other = source(), source()
    assert [one.next() for _ in range(20)] == [other.next() for _ in range(20)]


def test_two_users_ask_different_questions_about_the_same_documents():
    one, other = source(user=0), source(user=1)
    mine = [one.next() for _ in range(50)]
    theirs = [other.next() for _ in range(50)]
    assert [c.questions for c in mine] != [c.questions for c in theirs]
    assert {c.document: c.system for c in mine}[0] == {c.document: c.system for c in theirs}[0]


def test_popular_documents_come_more_often_and_all_of_them_come():
    drawn = source()
    seen = [drawn.next().document for _ in range(400)]
    assert set(seen) == set(range(8))
    assert seen.count(0) > seen.count(3) > seen.count(7)


def test_conversations_have_the_turns_they_may_have():
    drawn = source()
    assert {len(drawn.next().questions) for _ in range(200)} == {1, 2, 3, 4, 5, 6}


def test_documents_differ_from_their_first_line_and_are_as_long_as_asked():
    first, second = document(1, 0, 100), document(1, 1, 100)
    assert first.splitlines()[0] != second.splitlines()[0]
    assert 100 <= len(first.split()) < 130


def test_a_script_has_two_conversations_to_a_document():
    script = scripted_conversations(seed=1, conversations=5, turns=3, words=40)
    assert [c.document for c in script] == [0, 0, 1, 1, 2]
    assert script[0].system == script[1].system != script[2].system
    assert all(len(c.questions) == 3 for c in script)
    assert script == scripted_conversations(seed=1, conversations=5, turns=3, words=40)


def test_think_times_are_bounded_and_can_be_none():
    thinker = source()
    assert all(0 <= thinker.think_s(2.0) <= 8.0 for _ in range(200))
    assert thinker.think_s(0.0) == 0.0


@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.2])
def test_zipf_shares_sum_to_one_and_never_rise(exponent):
    weights = zipf_weights(10, exponent)
    assert sum(weights) == pytest.approx(1.0)
    assert weights == sorted(weights, reverse=True)
