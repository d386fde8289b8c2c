"""Section on misclassified images: suspected label errors, then the most confident mistakes."""

from __future__ import annotations

import base64
import shlex
from dataclasses import replace

import numpy as np
from support.reports import JPEG, content

from topwork.bundle.findings import Finding
from topwork.learning.learn import Judged
from topwork.report.content import Content, Making
from topwork.report.mistakes import SHOWN, gather


def test_the_most_confident_mistakes_come_first() -> None:
    """At most SHOWN misclassified images are shown, sorted by descending confidence."""
    made = content(images=200)
    found = gather(made)
    assert len(found.others) == SHOWN < found.other_images
    assert found.other_images == sum(map(sum, made.metrics.confusion)) - sum(
        row[index] for index, row in enumerate(made.metrics.confusion)
    )
    chances = [picture.predicted_probability for picture in found.others]
    assert chances == sorted(chances, reverse=True)
    assert all(picture.predicted != picture.label for picture in found.others)


def test_picture_has_the_prediction_of_its_image() -> None:
    """Name, labels and probabilities belong to the image, whatever the order of judged rows."""
    made = content()
    order = np.arange(len(made.exemplars))[::-1][:50]
    judged = Judged(rows=order, probabilities=made.judged.probabilities[order])
    picture = gather(replace(made, judged=judged)).others[0]
    row = made.exemplars.names.index(picture.name)
    chances = made.judged.probabilities[row]
    assert picture.label == made.exemplars.labels[made.exemplars.targets[row]]
    assert picture.label_probability == chances[made.exemplars.targets[row]]
    assert picture.predicted == made.exemplars.labels[chances.argmax()]
    assert picture.predicted_probability == chances.max()


def test_suspected_labels_keep_the_order_of_the_audit() -> None:
    """Suspected images are in the audit's order and are not listed again as mistakes."""
    made = content()
    wrong = [picture.name for picture in gather(made).others]
    found = gather(_suspecting(made, wrong[5], wrong[2]))
    assert [picture.name for picture in found.suspected] == [wrong[5], wrong[2]]
    assert not {wrong[5], wrong[2]} & {picture.name for picture in found.others}


def test_suspected_labels_have_the_commands_that_correct_them() -> None:
    """The commands have model, digest and the predicted label, quoted for a shell."""
    made = content()
    wrong = gather(made).others[0]
    labels = tuple("it's" if label == wrong.predicted else label for label in made.exemplars.labels)
    made = replace(made, exemplars=replace(made.exemplars, labels=labels))
    found = gather(_suspecting(made, wrong.name)).suspected[0]
    digest = made.exemplars.digests[made.exemplars.names.index(wrong.name)].tobytes().hex()
    move, remove = map(shlex.split, found.commands)
    assert move == ["topwork", "examples", "move", made.manifest.model, digest, "--to", "it's"]
    assert remove == ["topwork", "examples", "remove", made.manifest.model, digest]
    assert all(picture.commands == () for picture in gather(made).others)


def test_unknown_file_names_are_ignored() -> None:
    """A suspected image that was not evaluated, or has no name, is not shown."""
    found = gather(_suspecting(content(names=False), "folder/gone.jpg", ""))
    assert found.suspected == ()
    assert found.suspected_images == 0


def test_thumbnails_are_embedded_in_the_page() -> None:
    """A thumbnail is a data: URI of the exemplar's bytes."""
    kind, _, encoded = gather(content()).others[0].preview.uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(encoded) == JPEG


def _suspecting(made: Content, *names: str) -> Content:
    findings = tuple(
        Finding(kind="suspected_label", severity="warning", message="", images=(name,), labels=())
        for name in names
    )
    return replace(made, making=Making(command="", findings=findings))
