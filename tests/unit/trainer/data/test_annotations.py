"""Scan of COCO files and exports of Label Studio."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.photo_sets import ROWS, counts, left_out, write

from topwork.errors import InvalidInput
from topwork_trainer.data import Photos, scan

CATEGORIES = [{"id": 7, "name": "a"}, {"id": 3, "name": "b"}]
IDS = {"a": 7, "b": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with six photos of each of two classes."""
    return write(tmp_path / "photos")


def scanned(path: Path, document: object) -> Photos:
    """Return the scan of a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return scan(path)


def coco(more: Sequence[tuple[str, list[str]]] = (), drop: str = "") -> dict[str, Any]:
    """Return a COCO document in which each image has its label twice, and more images."""
    rows = [*((path, [label, label]) for path, label in ROWS), *more]
    document = {
        "images": [{"id": number, "file_name": path} for number, (path, _) in enumerate(rows)],
        "annotations": [
            {"image_id": number, "category_id": IDS[label], "bbox": [0, 0, 1, 1]}
            for number, (_, labels) in enumerate(rows)
            for label in labels
        ],
        "categories": CATEGORIES,
    }
    return {key: value for key, value in document.items() if key != drop}


def test_coco_category_of_an_image_is_its_label(folder: Path) -> None:
    """Images with several categories or none are left out and listed."""
    document = coco([("1.jpg", ["a", "b"]), ("2.jpg", []), ("3.jpg", ["b"])])
    photos = scanned(folder / "_annotations.coco.json", document)
    assert counts(photos) == {"a": 6, "b": 6}
    assert left_out(photos) == {
        "multi_label": ("1.jpg",),
        "unlabelled": ("2.jpg",),
        "missing": ("3.jpg",),
    }


@pytest.mark.parametrize(
    "path",
    [
        "photos/1.json",
        "annotations/instances_photos.json",
        "photos/labels/1.json",
    ],
)
def test_coco_photos_are_found_where_tools_put_them(folder: Path, path: str) -> None:
    """Photos are beside the file, in the folder above, or in the folder of the split."""
    photos = scanned(folder.parent / path, coco())
    assert counts(photos) == {"a": 6, "b": 6}
    assert photos.train[0].path is not None
    assert photos.train[0].path.resolve() == folder / "a/0.jpg"


def task(number: int, image: str, *choices: list[str], **more: object) -> dict[str, object]:
    """Return a task with an annotation for each list of choices."""
    annotations = [
        {"result": [{"type": "choices", "value": {"choices": chosen}}] if chosen else [], **more}
        for chosen in choices
    ]
    return {"id": number, "data": {"image": image}, "annotations": annotations}


@pytest.mark.parametrize(
    "prefix", ["", "/data/local-files/?d=", "http://localhost:8080/data/local-files/?d="]
)
def test_label_studio_choice_is_the_label(folder: Path, prefix: str) -> None:
    """Tasks without one choice that all annotators agree on are left out and listed."""
    tasks = [task(number, prefix + path, [label]) for number, (path, label) in enumerate(ROWS)]
    tasks += [
        task(20, f"{prefix}1.jpg", ["a"], ["b"]),
        task(21, f"{prefix}2.jpg", ["a", "b"]),
        task(22, f"{prefix}3.jpg", []),
        task(23, f"{prefix}4.jpg", ["a"], was_cancelled=True),
        task(24, f"{prefix}5.jpg", ["b"], ["b"]),
    ]
    photos = scanned(folder / "export.json", tasks)
    assert counts(photos) == {"a": 6, "b": 6}
    assert left_out(photos) == {
        "disagreement": ("1.jpg",),
        "multi_label": ("2.jpg",),
        "unlabelled": ("3.jpg", "4.jpg"),
        "missing": ("5.jpg",),
    }


def test_uploads_of_label_studio_are_found_by_name(folder: Path) -> None:
    """Uploaded photos are beside the export, or in its folder ``images``."""
    tasks = []
    for number, (path, label) in enumerate(ROWS):
        name = path.replace("/", "-")
        write(folder / "images", [(name, label)])
        tasks.append(task(number, f"/data/upload/3/{name}", [label]))
    assert counts(scanned(folder / "export.json", tasks)) == {"a": 6, "b": 6}


def minimal(number: int, image: str, **more: object) -> dict[str, object]:
    """Return an annotation in Label Studio's JSON-MIN."""
    return {"id": number, "annotation_id": number + 100, "image": image, "lead_time": 1.5, **more}


@pytest.mark.parametrize("name", ["choice", "label", "my tag"])
def test_json_min_choice_is_the_label(folder: Path, name: str) -> None:
    """An object is an annotation: a choice, several, or none; annotators of a task must agree."""
    rows = [minimal(number, path, **{name: label}) for number, (path, label) in enumerate(ROWS)]
    rows += [
        minimal(0, ROWS[0][0], **{name: "a"}),
        minimal(20, "1.jpg", **{name: "a"}),
        minimal(20, "1.jpg", **{name: "b"}),
        minimal(21, "2.jpg", **{name: {"choices": ["a", "b"]}}),
        minimal(22, "3.jpg"),
    ]
    photos = scanned(folder / "min.json", rows)
    assert counts(photos) == {"a": 6, "b": 6}
    assert left_out(photos) == {
        "disagreement": ("1.jpg",),
        "multi_label": ("2.jpg",),
        "unlabelled": ("3.jpg",),
    }


def test_backslashes_separate_folders_in_coco(folder: Path) -> None:
    """COCO files that Windows wrote name the same photos."""
    document = coco()
    for image in document["images"]:
        image["file_name"] = image["file_name"].replace("/", "\\")
    photos = scanned(folder / "1.json", document)
    assert counts(photos) == {"a": 6, "b": 6}
    assert photos.train[0].name == "a/0.jpg"


def test_list_of_objects_is_a_manifest(folder: Path) -> None:
    """JSON with a list of objects has the columns of a manifest."""
    rows = [{"path": path, "label": label} for path, label in ROWS]
    assert counts(scanned(folder / "1.json", rows)) == {"a": 6, "b": 6}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (coco(drop="categories"), "neither COCO, nor a JSON export of Label Studio"),
        (3, "neither COCO"),
        ([3], "neither COCO"),
        ({**coco(), "categories": []}, "is not valid: KeyError 7"),
        ({**coco(), "images": [{"id": 1}]}, "is not valid: KeyError"),
        ({**coco(), "images": 3}, "is not valid: TypeError"),
        ([task(1, "", ["a"])], "task 1 has no image in its data"),
        ([task(1, "https://x/1.jpg", ["a"])], "https://x/1.jpg is a URL"),
        ([{"path": "1.jpg"}], "no column of labels"),
        (
            [minimal(1, "1.jpg", x="a", y="b")],
            "is not valid: .* the choice of task 1 is one of x, y",
        ),
        ([minimal(1, "1.jpg", choice=3)], "is not valid: TypeError"),
    ],
)
def test_unusable_annotations_are_refused(folder: Path, document: object, message: str) -> None:
    """The error names the file and the problem."""
    with pytest.raises(InvalidInput, match=message):
        scanned(folder / "1.json", document)
