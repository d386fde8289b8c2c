"""RecentAnswers: bounds, and who gets an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.offers import offer

from topwork.errors import NotFound
from topwork.review.answers import ANSWER_SECONDS, RecentAnswers


def test_answer_is_found_until_it_is_too_old() -> None:
    """After ten minutes the image is forgotten, also without another call."""
    now = 1000.0
    answers = RecentAnswers(clock=lambda: now)
    identifier = answers.add(offer())
    assert answers.get("colours", identifier).model == "colours"
    now += ANSWER_SECONDS + 1
    with pytest.raises(NotFound, match="is not known"):
        answers.get("colours", identifier)
    answers.expire()
    assert not answers._answers


def test_answer_of_another_model_is_not_found() -> None:
    """The caller may have no rights for the other model."""
    answers = RecentAnswers()
    identifier = answers.add(replace(offer(), model="secret"))
    with pytest.raises(NotFound, match="of model 'colours'"):
        answers.get("colours", identifier)


def test_oldest_answers_are_forgotten_above_the_limit() -> None:
    """Memory is bounded by the bytes of the images."""
    answers = RecentAnswers(most_bytes=100_000)
    identifiers = [answers.add(replace(offer(), image=bytes(10_000))) for _ in range(100)]
    known = [identifier for identifier in identifiers if identifier in answers._answers]
    assert known == identifiers[-9:]


def test_answers_of_a_model_are_dropped_when_its_policy_is_turned_off() -> None:
    """Others stay."""
    answers = RecentAnswers()
    first, second = answers.add(offer()), answers.add(replace(offer(), model="other"))
    answers.drop("colours")
    assert first not in answers._answers
    assert answers.get("other", second).model == "other"
