"""A model in this process: ``topwork.open``."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image
from support import tiny
from support.pictures import picture

import topwork
from topwork import ImageResult
from topwork.bundle.store import Repository
from topwork.client.images import ImageLike
from topwork.errors import Corrupt, InvalidInput, NotFound

BLUE = picture("blue", 40)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with the model ``colours``."""
    return tiny.repository(tmp_path_factory.mktemp("local") / "repository")


@pytest.fixture(scope="module")
def model(repository: Repository) -> topwork.Model:
    """Return the opened model."""
    return topwork.open(repository.root, "colours")


def best(result: ImageResult) -> str:
    """Return the most probable label."""
    return result.predictions[0].label


def test_model_has_its_name_revision_and_labels(model: topwork.Model) -> None:
    """They are those of the serving revision."""
    assert (model.name, model.revision) == ("colours", 1)
    assert model.labels == ("amber", "blue", "crimson", "green")


def test_every_kind_of_image_gives_the_same_result(model: topwork.Model, tmp_path: Path) -> None:
    """Bytes, path, open file, Pillow's image and array."""
    path = tmp_path / "blue.png"
    path.write_bytes(BLUE)
    opened = Image.open(path)
    with path.open("rb") as file:
        images: list[ImageLike] = [
            BLUE,
            path,
            str(path),
            file,
            io.BytesIO(BLUE),
            opened,
            np.asarray(opened),
        ]
        results = model.predict(images)
    assert [result == results[0] for result in results] == [True] * len(images)
    assert best(results[0]) == "blue"
    assert results[0].unknown_probability is not None


def test_iterator_gives_a_generator_that_reads_a_few_images_ahead(model: topwork.Model) -> None:
    """An endless iterator can be used."""

    def endless() -> Iterator[bytes]:
        while True:
            yield BLUE

    results = model.predict(endless())
    assert best(next(results)) == "blue"
    results.close()


def test_results_are_in_the_order_of_the_images(model: topwork.Model) -> None:
    """For more images than are in flight."""
    shown = ["blue", "amber", "green", "crimson"] * 20
    results = model.predict([picture(label, number) for number, label in enumerate(shown)])
    assert [best(result) for result in results] == shown


def test_invalid_image_is_an_error_in_its_place(model: topwork.Model) -> None:
    """The others have results."""
    first, error, last = model.predict([BLUE, b"nonsense", BLUE])
    assert error.error is not None
    assert error.error.reason == "IMAGE_UNREADABLE"
    assert best(first) == best(last) == "blue"


def test_top_k_limits_the_predictions(model: topwork.Model) -> None:
    """The default is that of the server; 0 is refused."""
    (result,) = model.predict([BLUE], top_k=2)
    assert len(result.predictions) == 2
    with pytest.raises(InvalidInput, match="top_k is 0; it must be at least 1"):
        model.predict([BLUE], top_k=0)


def test_single_image_is_refused(model: topwork.Model) -> None:
    """Iterating over it would give numbers or rows."""
    for single in (BLUE, np.zeros((8, 8, 3), dtype=np.uint8)):
        with pytest.raises(TypeError, match="pass a list of images"):
            model.predict(cast("list[ImageLike]", single))


def test_revision_can_be_chosen(repository: Repository) -> None:
    """0 is the serving one; an unknown model or revision is NotFound."""
    assert topwork.open(repository.root, "colours", revision=1).revision == 1
    with pytest.raises(NotFound, match="models/colours/revisions/7"):
        topwork.open(repository.root, "colours", revision=7)
    with pytest.raises(NotFound, match="models/shapes"):
        topwork.open(repository.root, "shapes")


def test_damaged_head_is_refused(repository: Repository, tmp_path: Path) -> None:
    """As in the server, each file is verified when it is read."""
    copy = tmp_path / "copy"
    shutil.copytree(repository.root, copy)
    head = copy / "models/colours/1/head.onnx"
    head.write_bytes(head.read_bytes()[:-1] + b"\0")
    with pytest.raises(Corrupt, match=r"head\.onnx"):
        topwork.open(copy, "colours")


def test_backbone_that_is_off_is_replaced_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the server, its fp32 twin runs instead."""
    opened = topwork.open(tiny.saturating_repository(tmp_path / "repository").root, "colours")
    assert "backbone is off" in caplog.text
    assert best(opened.predict([BLUE])[0]) == "blue"
