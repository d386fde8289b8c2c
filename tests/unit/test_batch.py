"""Batch functions for data engines: ``topwork.batch``."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import sounds, spaces, texts, tiny
from support.pictures import picture

import topwork
from topwork import batch, local, opened_models
from topwork.batch import Classifier, Embedder
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput, NotFound

IMAGES = [picture(label, 60 + row) for row, label in enumerate(["blue", "green", "amber", "blue"])]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with the model ``colours``."""
    return tiny.repository(tmp_path_factory.mktemp("batch") / "repository")


@pytest.fixture(scope="module")
def model(repository: Repository) -> topwork.Model:
    """Return the opened model."""
    return topwork.open(repository.root, "colours")


@pytest.mark.parametrize("threads", [1, 3])
def test_classifier_gives_the_answers_of_an_opened_model(
    repository: Repository, model: topwork.Model, threads: int
) -> None:
    """Labels, probabilities and unknown probability are equal, bit by bit."""
    classify = Classifier(repository.root, "colours", top_k=3, threads=threads)
    columns = classify({"image": IMAGES, "id": [7, 8, 9, 10]})
    for row, result in enumerate(model.predict(IMAGES, top_k=3)):
        shown = tuple(zip(columns["labels"][row], columns["probabilities"][row], strict=True))
        assert shown == result.predictions
        assert columns["unknown_probability"][row] == result.unknown_probability
        assert columns["is_unknown"][row] == result.is_unknown
    assert columns["id"] == [7, 8, 9, 10]
    assert columns["error"] == [""] * 4
    assert columns["revision"].tolist() == [1] * 4


def test_embedder_gives_the_embeddings_of_exemplars(repository: Repository) -> None:
    """Embedding and digest are those that a fit on the same images stores."""
    exemplars = tiny.embed_pictures({"any": IMAGES})
    columns = Embedder(repository.root, "colours")({"image": IMAGES})
    stored = {row.tobytes().hex(): place for place, row in enumerate(exemplars.digests)}
    order = [stored[digest] for digest in columns["digest"]]
    assert columns["embedding"].tobytes() == exemplars.embeddings[order].tobytes()
    assert columns["embedding"].dtype == np.float32


def test_a_bad_item_is_an_error_of_its_own_row(repository: Repository, tmp_path: Path) -> None:
    """Bytes that are no image, a missing file, a number and a missing value spoil no other row."""
    items: list[Any] = [IMAGES[0], b"nothing", tmp_path / "missing.jpg", 5, None, IMAGES[1]]
    labelled = Classifier(repository.root, "colours")({"image": items})
    assert [bool(error) for error in labelled["error"]] == [False, True, True, True, True, False]
    assert [len(labels) for labels in labelled["labels"]] == [4, 0, 0, 0, 0, 4]
    assert labelled["error"][2] == "the file cannot be read: No such file or directory"
    embedded = Embedder(repository.root, "colours")({"image": items})
    assert [bool(error) for error in embedded["error"]] == [False, True, True, True, True, False]
    assert np.isnan(embedded["embedding"]).all(axis=1).tolist() == [*[False], *[True] * 4, False]


def test_paths_in_arrays_and_lists_give_the_same_answers(
    repository: Repository, tmp_path: Path
) -> None:
    """A column may be an object array of paths or bytes; a list gives a list of rows."""
    paths = [tmp_path / f"{row}.png" for row in range(4)]
    for path, image in zip(paths, IMAGES, strict=True):
        path.write_bytes(image)
    classify = Classifier(repository.root, "colours", column="path", drop=["path"])
    by_bytes = classify(IMAGES)
    assert classify([str(path) for path in paths]) == by_bytes
    columns = classify({"path": np.array([str(path) for path in paths], dtype=object)})
    assert sorted(columns) == sorted(by_bytes[0])
    assert columns["labels"] == [row["labels"] for row in by_bytes]


def test_pickled_function_keeps_the_revision(repository: Repository) -> None:
    """A copy is small, and of the revision that served when the object was made."""
    classify = Classifier(repository.root, "colours", prefix="model_")
    copy = pickle.loads(pickle.dumps(classify))  # noqa: S301 # our own
    assert copy.revision == classify.revision == 1
    assert copy({"image": IMAGES[:1]}).keys() == classify({"image": IMAGES[:1]}).keys()
    assert len(pickle.dumps(classify)) < 1000


def test_url_of_a_repository_survives_pickling(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers open the same bucket: the URL stays a text with both slashes, and no path."""
    url = "s3://bucket/a b/models"
    asked: list[object] = []

    def opened(location: object, *_: object, **_options: object) -> Repository:
        asked.append(location)
        return repository

    monkeypatch.setattr(batch, "open_repository", opened)
    monkeypatch.setattr(local, "open_repository", opened)
    monkeypatch.setattr(opened_models, "_opened", {})
    for function in (Classifier(url, "colours"), Embedder(url, "colours")):
        copy = pickle.loads(pickle.dumps(function))  # noqa: S301 # our own
        assert copy(IMAGES[:2])[0]["error"] == ""
    assert asked == [url] * 3  # for the revision of each, and for the model, once
    assert all(isinstance(location, str) for location in asked)


def test_process_opens_a_model_once(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies and threads of a process share the model; both functions, too."""
    opened = []
    original = topwork.open

    def counting(*arguments: Any, **options: Any) -> topwork.Model:
        opened.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(opened_models, "open_model", counting)
    monkeypatch.setattr(opened_models, "_opened", {})
    pickled = pickle.dumps(Classifier(repository.root, "colours"))
    copies = [pickle.loads(pickled) for _ in range(4)]  # noqa: S301 # our own
    threads = [threading.Thread(target=copy, args=(IMAGES[:2],)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Embedder(repository.root, "colours")(IMAGES[:1])
    assert len(opened) == 1


@pytest.mark.slow
def test_processes_of_a_pool_give_the_same_answers(repository: Repository) -> None:
    """Spawned processes unpickle the function and open models of their own."""
    classify = Classifier(repository.root, "colours")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found: list[Any] = pool.map(classify, [IMAGES[:2], IMAGES[2:]])
    assert [row for rows in found for row in rows] == classify(IMAGES)


def test_forked_process_opens_its_own_model(repository: Repository) -> None:
    """A fork after the first batch does not use the parent's model."""
    classify = Classifier(repository.root, "colours")
    expected = classify(IMAGES)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found: list[Any] = pool.apply(classify, (IMAGES,))
    assert found == expected


def test_embeddings_may_be_arrays_or_lists_of_numbers(tmp_path: Path) -> None:
    """A model of embeddings takes the rows of a matrix, and lists as Arrow gives them."""
    repository = spaces.repository(tmp_path / "repository")
    rows = spaces.rows("b", 3, first=40)
    classify = Classifier(repository.root, "points", column="embedding", drop=["embedding"])
    of_matrix = classify({"embedding": rows})
    of_lists = classify({"embedding": [row.tolist() for row in rows]})
    assert [labels[0] for labels in of_matrix["labels"]] == ["b"] * 3
    assert of_matrix["probabilities"] == of_lists["probabilities"]
    of_images = classify({"embedding": IMAGES[:1]})
    assert "takes inputs of the kind 'embedding', not 'image'" in of_images["error"][0]


def test_strings_are_texts_for_a_model_of_texts(tmp_path: Path) -> None:
    """A column of strings is no column of paths then; a lone surrogate is an error of its row."""
    repository = texts.repository(tmp_path / "repository")
    given = [*texts.texts("music", 2, first=90), "\ud800"]
    columns = Classifier(repository.root, "topics", column="text")({"text": given})
    assert [bool(error) for error in columns["error"]] == [False, False, True]
    shown = topwork.open(repository.root, "topics").predict([topwork.Text(given[0])])
    assert columns["labels"][0] == [prediction.label for prediction in shown[0].predictions]
    assert columns["labels"][0][0] == "music"


def test_bytes_are_recordings_for_a_model_of_audio(tmp_path: Path) -> None:
    """The bytes of an audio file are no photo then; those of a photo are an error of their row."""
    repository = sounds.repository(tmp_path / "repository")
    given = [*sounds.recordings(sounds.LABELS[0], 1, first=90), IMAGES[0]]
    columns = Classifier(repository.root, "sounds", column="audio")({"audio": given})
    assert [bool(error) for error in columns["error"]] == [False, True]
    (shown,) = topwork.open(repository.root, "sounds").predict([topwork.Audio(given[0])])
    assert columns["labels"][0] == [prediction.label for prediction in shown.predictions]


def test_wrong_columns_are_refused(repository: Repository) -> None:
    """A missing column of inputs and a column named like an answer are the caller's errors."""
    classify = Classifier(repository.root, "colours")
    with pytest.raises(InvalidInput, match="no column 'image'; its columns are 'path'"):
        classify({"path": ["a"]})
    with pytest.raises(InvalidInput, match="labels; give a prefix"):
        classify({"image": IMAGES[:1], "labels": ["blue"]})


def test_tables_and_single_inputs_are_no_lists(repository: Repository, tmp_path: Path) -> None:
    """Iterating over them would give columns, letters or numbers, and an error in each row."""
    classify: Any = Classifier(repository.root, "colours")
    with pytest.raises(TypeError, match="the batch is Table: pass a dictionary of columns"):
        classify(pa.table({"image": IMAGES}))
    for single in (IMAGES[0], str(tmp_path), tmp_path, np.zeros((4, 4, 3), dtype=np.uint8)):
        with pytest.raises(TypeError, match="pass a list of images"):
            classify(single)


def test_arrow_table_as_columns_is_classified(repository: Repository) -> None:
    """The columns of ``to_pydict`` are lists of bytes."""
    table = pa.table({"image": IMAGES, "id": [1, 2, 3, 4]})
    columns = Classifier(repository.root, "colours", drop=["image"])(table.to_pydict())
    assert columns["id"] == [1, 2, 3, 4]
    assert columns["error"] == [""] * 4


def test_wrong_arguments_are_refused_where_the_object_is_made(repository: Repository) -> None:
    """An unknown model, zero threads and zero labels are found before any process starts."""
    with pytest.raises(NotFound, match="models/nothing"):
        Classifier(repository.root, "nothing")
    with pytest.raises(InvalidInput, match="threads is 0"):
        Embedder(repository.root, "colours", threads=0)
    with pytest.raises(InvalidInput, match="top_k is 0"):
        Classifier(repository.root, "colours", top_k=0)
