"""The images that are worth a look are found, and the worst come first."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
from support.reports import JPEG, content

from topwork.bundle.findings import Finding
from topwork.learning.learn import Judged
from topwork.report.content import Content, Making
from topwork.report.mistakes import SHOWN, gather


def test_the_most_confident_mistakes_come_first() -> None:
    """Only images that were called wrong are shown, by falling probability, and not too many."""
    made = content(images=200)
    found = gather(made)
    assert len(found.others) == SHOWN < found.other_images
    assert found.other_images == sum(map(sum, made.metrics.confusion)) - sum(
        row[index] for index, row in enumerate(made.metrics.confusion)
    )
    chances = [one.called_probability for one in found.others]
    assert chances == sorted(chances, reverse=True)
    assert all(one.called != one.label for one in found.others)


def test_a_picture_says_what_the_head_answered() -> None:
    """Name, both labels and both probabilities are those of the image, wherever it was judged."""
    made = content()
    order = np.arange(len(made.exemplars))[::-1][:50]
    judged = Judged(rows=order, probabilities=made.judged.probabilities[order])
    picture = gather(replace(made, judged=judged)).others[0]
    row = made.exemplars.names.index(picture.name)
    chances = made.judged.probabilities[row]
    assert picture.label == made.exemplars.labels[made.exemplars.targets[row]]
    assert picture.label_probability == chances[made.exemplars.targets[row]]
    assert picture.called == made.exemplars.labels[chances.argmax()]
    assert picture.called_probability == chances.max()


def test_suspected_labels_keep_the_order_of_the_audit() -> None:
    """Suspected images come as the audit ranks them, and are not shown twice."""
    made = content()
    wrong = [one.name for one in gather(made).others]
    found = gather(_suspecting(made, wrong[5], wrong[2]))
    assert [one.name for one in found.suspected] == [wrong[5], wrong[2]]
    assert not {wrong[5], wrong[2]} & {one.name for one in found.others}


def test_names_that_nobody_knows_are_passed_over() -> None:
    """A suspected image that was not judged, or has no name, is left to the audit's list."""
    found = gather(_suspecting(content(names=False), "folder/gone.jpg", ""))
    assert found.suspected == ()
    assert found.suspected_images == 0


def test_thumbnails_travel_in_the_page() -> None:
    """A thumbnail is a data: URI of the exemplar's own bytes."""
    kind, _, encoded = gather(content()).others[0].thumbnail.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(encoded) == JPEG


def _suspecting(made: Content, *names: str) -> Content:
    findings = tuple(
        Finding(kind="suspected_label", severity="warning", message="", images=(name,), labels=())
        for name in names
    )
    return replace(made, making=Making(command="", findings=findings))
