"""Page of an evaluation."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from support.pictures import COLOURS, picture

from topwork.errors import ImageError
from topwork.inputs.data.photos import Photo
from topwork.learning.evaluation import Answers, compare_answers, evaluate_answers
from topwork.report.evaluation import Evaluated, render_evaluation, subgroup_rows

LABELS = ("amber", "blue")
COUNT = 40


def _unreadable() -> bytes:
    raise ImageError("gone")


def evaluated(*, label: str = "blue", wrong: int = 10) -> Evaluated:
    """Return an evaluation in which the first photos, all of camera ``old``, are wrong."""
    photos = [
        Photo(
            name=f"<{number}>.png",
            label=label if number % 2 else "amber",
            read=(lambda number=number: picture(LABELS[number % 2], number))  # type: ignore[misc]  # mypy cannot infer a lambda's default
            if number
            else _unreadable,
            columns=(("camera", "old" if number < 2 * wrong else "new"),),
        )
        for number in range(COUNT)
    ]
    right = np.arange(COUNT) % 2 if label in LABELS else np.zeros(COUNT, dtype=int)
    called = np.where(np.arange(COUNT) < wrong, 1 - right, right)
    answers = Answers(
        revision=2,
        labels=LABELS,
        probabilities=(0.2 + 0.6 * np.eye(2)[called]).astype(np.float32),
        unknown=np.linspace(0, 1, COUNT, dtype=np.float32),
        is_unknown=np.linspace(0, 1, COUNT) > 0.9,
    )
    result = evaluate_answers(photos, answers)
    return Evaluated(
        model="colours",
        photos=photos,
        answers=answers,
        evaluation=result,
        compared=result,
        comparison=compare_answers(photos, answers, answers),
        skipped=[],
        left_out=[],
        notes=["A <note>"],
    )


def test_page_has_all_sections_and_escapes_names() -> None:
    """Comparison, labels, confusion, calibration, subgroups, unknown images and mistakes."""
    page = render_evaluation(evaluated())
    assert "75.0" in page
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == [
        "changes",
        "labels",
        "confusion",
        "reliability",
        "subgroups",
        "unknown",
        "mistakes",
    ]
    assert "A &lt;note&gt;" in page
    assert "&lt;3&gt;.png" in page
    assert "<3>" not in page
    assert "trained without the image" not in page


def test_mistakes_have_thumbnails_where_the_photo_can_be_read() -> None:
    """The first photo cannot be read any more."""
    page = render_evaluation(evaluated())
    assert page.count("data:image/jpeg;base64,") == 9
    assert page.count("no thumbnail") == 1


def test_sections_without_data_are_left_out() -> None:
    """Without columns, detection and another revision."""
    full = evaluated()
    plain = replace(
        full,
        evaluation=replace(full.evaluation, unknown=None, subgroups=()),
        compared=None,
        comparison=None,
    )
    found = re.findall(r'<section id="(\w+)"', render_evaluation(plain))
    assert found == ["labels", "confusion", "reliability", "mistakes"]


def test_strangers_are_no_mistakes() -> None:
    """A photo of a label that the model lacks cannot be classified correctly."""
    page = render_evaluation(evaluated(label="zircon", wrong=0))
    assert set(COLOURS) >= {"zircon"}
    assert "No evaluated image is misclassified" in page
    assert "Detection rate" in page


def test_subgroup_is_worse_beside_the_others() -> None:
    """Half of the photos of the old camera are wrong, none of the new one."""
    rows = {row.value: row.verdict for row in subgroup_rows(evaluated().evaluation)}
    assert rows == {"old": "worse", "new": "better"}
