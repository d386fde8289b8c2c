"""Reader of annotations as labels of whole photos: COCO, and Label Studio's exports."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast
from urllib.parse import parse_qs, urlsplit

from topwork.errors import InvalidInput
from topwork.inputs.data.manifests import (
    COLUMNS,
    Collector,
    Entry,
    Manifest,
    locate,
    read_manifests,
)
from topwork.inputs.data.photos import Found
from topwork.inputs.data.tables import Row, Table, clip, decode, list_columns, parse_json
from topwork.inputs.data.trees import Tree
from topwork.inputs.folders import Reason
from topwork.printable import file_name, printable


@dataclass(frozen=True, slots=True, kw_only=True)
class _Annotated:
    """A photo with what its annotations say."""

    place: str
    given: str
    """Path or URL of the photo."""
    label: str
    """Empty: it is left out."""
    reason: Reason = "unlabelled"
    """Reason to leave it out."""


def read_annotations(tree: Tree, path: Path) -> Found:
    """Return the photos of a JSON file whose annotations give them exactly one label.

    The file is COCO (the label is the category of all annotations of the photo), Label Studio's
    JSON or JSON-MIN export (the label is the choice of all annotators), or a list of objects with
    the columns of a manifest. Raises InvalidInput if it is none of them, or a path is a URL.
    """
    name = file_name(path.name)
    document = parse_json(decode(tree.read_table(path), name), name)
    if isinstance(document, dict) and {"images", "annotations", "categories"} <= document.keys():
        reader, folders = _coco, _coco_folders(path)
    elif _is_label_studio(document):
        reader, folders = _label_studio, [path.parent, path.parent / "images"]
    elif _is_json_min(document):
        reader, folders = _json_min, [path.parent, path.parent / "images"]
    elif isinstance(document, list) and all(isinstance(row, dict) for row in document):
        table = table_of(document, name)
        return read_manifests(tree, [Manifest(table=table, folder=path.parent)])
    else:
        raise InvalidInput(
            f"{name} is neither COCO, nor a JSON export of Label Studio, nor a list of objects",
            field="data",
        )
    try:
        photos = list(reader(document))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        text = f"{name} is not valid: {type(error).__name__} {clip(error)}"
        raise InvalidInput(printable(text), field="data") from error
    return _collect(tree, Table(name=name, columns=(), rows=()), folders, photos)


def table_of(document: Sequence[dict[str, object]], name: str) -> Table:
    """Return the table of a list of objects."""
    columns = tuple(dict.fromkeys(column for row in document for column in row))
    rows = [Row(place=f"object {number}", values=row) for number, row in enumerate(document)]
    return Table(name=name, columns=columns, rows=rows)


def _collect(
    tree: Tree, table: Table, folders: Sequence[Path], photos: Sequence[_Annotated]
) -> Found:
    """Return the labelled photos; each is in the first of ``folders`` that has it."""
    collector = Collector(tree=tree, name=table.name)
    for photo in photos:
        path = locate(tree, table, photo.place, folders, photo.given)
        name = file_name(os.path.relpath(path, tree.root))
        if photo.label:
            entry = Entry(place=photo.place, path=path, name=name, label=photo.label)
            collector.add(entry)
        else:
            collector.omitted.append((photo.reason, name))
    return collector.found()


# COCO


def _coco_folders(path: Path) -> list[Path]:
    """Return the folders in which tools put the photos of a COCO file."""
    folder, above = path.parent, path.parent.parent
    split = path.stem.rpartition("_")[2]  # instances_train2017.json
    return [folder, folder / "images", above, above / "images", above / split, folder / split]


def _coco(document: object) -> Iterator[_Annotated]:
    content = cast("dict[str, list[dict[str, object]]]", document)
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    labels: dict[object, set[str]] = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        labels[annotation["image_id"]].add(names[annotation["category_id"]])
    for image in content["images"]:
        yield _annotated(f"image {image['id']}", str(image["file_name"]), labels[image["id"]])


# Label Studio


def _is_label_studio(document: object) -> bool:
    return (
        isinstance(document, list)
        and bool(document)
        and all(
            isinstance(task, dict)
            and isinstance(task.get("data"), dict)
            and isinstance(task.get("annotations"), list)
            for task in document
        )
    )


def _label_studio(document: object) -> Iterator[_Annotated]:
    for number, task in enumerate(cast("list[dict[str, object]]", document)):
        place = f"task {task.get('id', number)}"
        annotations = cast("list[dict[str, object]]", task["annotations"])
        chosen = [
            choices
            for annotation in annotations
            if not annotation.get("was_cancelled") and (choices := _choices(annotation))
        ]
        given = _photo(place, cast("dict[str, object]", task["data"]))
        photo = _annotated(place, given, set().union(*chosen))
        if not photo.label and any(len(choices) == 1 for choices in chosen):
            photo = _Annotated(place=place, given=given, label="", reason="disagreement")
        yield photo


def _is_json_min(document: object) -> bool:
    return (
        isinstance(document, list)
        and bool(document)
        and all(isinstance(row, dict) and {"id", "annotation_id"} <= row.keys() for row in document)
    )


def _json_min(document: object) -> Iterator[_Annotated]:
    """Yield the photos of JSON-MIN: an object per annotation, with its choices under their name."""
    tasks: dict[object, dict[str, object]] = {}
    annotations: dict[object, list[object]] = defaultdict(list)
    for row in cast("list[dict[str, object]]", document):
        identifier = row["id"]
        data = {key: value for key, value in row.items() if key not in _JSON_MIN}
        others = sorted(data.keys() - {"image"})
        name = next((name for name in _CHOICES if name in data), "".join(others[:1]))
        if name not in _CHOICES and len(others) > 1:
            raise ValueError(f"the choice of task {identifier} is one of {list_columns(others)}")
        value = data.pop(name, [])
        choices = value["choices"] if isinstance(value, dict) else value
        chosen = [choices] if isinstance(choices, str) else choices
        tasks.setdefault(identifier, data)
        annotations[identifier].append(
            {"result": [{"type": "choices", "value": {"choices": chosen}}] if chosen else []}
        )
    return _label_studio(
        [
            {"id": identifier, "data": data, "annotations": annotations[identifier]}
            for identifier, data in tasks.items()
        ]
    )


_JSON_MIN = frozenset(
    ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement")
)
"""Keys of JSON-MIN that are neither data nor choices."""

_CHOICES = ("choice", *COLUMNS["label"])
"""Usual names of choices; a choice of another name is recognised if there is no other data."""


def _choices(annotation: dict[str, object]) -> set[str]:
    """Return the choices of an annotator."""
    results = cast("list[dict[str, object]]", annotation["result"])
    values = [result["value"] for result in results if result.get("type") == "choices"]
    return {
        str(choice)
        for value in cast("list[dict[str, list[str]]]", values)
        for choice in value["choices"]
    }


def _photo(place: str, data: dict[str, object]) -> str:
    """Return the path of a task's photo: relative to the storage, or the name of the upload."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    given = texts.get("image") or (next(iter(texts.values())) if len(texts) == 1 else "")
    if not given:
        raise ValueError(f"{place} has no image in its data")
    parts = urlsplit(given)
    if parts.path.startswith("/data/local-files"):
        return parse_qs(parts.query)["d"][0].lstrip("/")
    return PurePosixPath(parts.path).name if parts.path.startswith("/data/upload/") else given


def _annotated(place: str, given: str, labels: set[str]) -> _Annotated:
    if len(labels) == 1:
        label = unicodedata.normalize("NFC", next(iter(labels)).strip())
        return _Annotated(place=place, given=given, label=label)
    reason: Reason = "multi_label" if labels else "unlabelled"
    return _Annotated(place=place, given=given, label="", reason=reason)
