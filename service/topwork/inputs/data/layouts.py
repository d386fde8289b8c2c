"""Recognition of the layout of training data, by content where it has a signature."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path

from topwork import audio_files
from topwork.errors import InvalidInput
from topwork.inputs.data import mixture, texts
from topwork.inputs.data.annotations import read_annotations
from topwork.inputs.data.archives import is_archive, open_archive
from topwork.inputs.data.class_folders import read_class_folders
from topwork.inputs.data.fasta import expand
from topwork.inputs.data.kind_tree import KindTree
from topwork.inputs.data.manifests import Manifest, known_columns, read_manifests
from topwork.inputs.data.parquet import parquet_files, parquet_table, read_parquet
from topwork.inputs.data.photos import Found
from topwork.inputs.data.tables import Table
from topwork.inputs.data.trees import DiskTree, Tree
from topwork.inputs.folders import Listing
from topwork.inputs.splits import splits
from topwork.printable import file_name

TABLES = texts.READERS
"""Readers of manifests by the extension of the file."""

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read(data: Path, classes: AbstractSet[str] | None, kind: str = "image") -> Found:
    """Return the photos, or the inputs of another kind, of ``data``.

    ``classes``, in composed form, are never taken for splits. Raises InvalidInput if the layout is
    unknown or the data contradicts itself.
    """
    if data.is_dir():
        return _read_folder(DiskTree(data), data, classes, kind)
    if not data.is_file():
        raise InvalidInput(f"{file_name(data)} is not a folder or a file", field="data")
    if kind == "text" and texts.is_text_file(data):
        return texts.read_text_files(DiskTree(data.parent), data.parent, [data])
    if data.suffix.casefold() in TABLES:
        tree = DiskTree(data.parent)
        return read_manifests(tree, [Manifest(table=_table(tree, data), folder=data.parent)])
    if data.suffix.casefold() == ".json":
        return read_annotations(DiskTree(data.parent), data)
    if data.suffix.casefold() == ".parquet":
        return read_parquet([data], data.parent)
    if is_archive(data):
        archive = open_archive(data)
        found = _read_folder(archive, _top(archive), classes, kind)
        return replace(found, omitted=(*found.omitted, *archive.omitted))
    raise InvalidInput(
        f"{file_name(data)} is not a folder, an archive (zip, tar) or a manifest, whose extension "
        f"is one of {', '.join(TABLES)}, .json and .parquet",
        field="data",
    )


def find_kind(data: Path, classes: AbstractSet[str] | None) -> tuple[str, Found]:
    """Return the kind of ``data`` by its files, and what ``read`` returns.

    It is ``image``, ``text`` or ``audio``. Raises InvalidInput as ``read``, and if there are files
    of two kinds.
    """
    if data.is_dir():
        is_text = bool(texts.text_files(DiskTree(data), data))
    else:
        is_text = data.is_file() and texts.is_text_file(data)
    if not is_text:
        found = read(data, classes)
        if not mixture.has_only_texts(data, found, classes):
            return ("audio" if mixture.has_only_audio(data, found, classes) else "image"), found
    return "text", read(data, classes, "text")


def _top(tree: Tree) -> Path:
    """Return the folder with the data: the root, or the only folder there if it has folders."""
    top = tree.root
    while True:
        listing = tree.list_folder(top)
        if len(listing.folders) != 1 or listing.files or not _holds_data(tree, listing.folders[0]):
            return top
        (top,) = listing.folders


def _holds_data(tree: Tree, folder: Path) -> bool:
    listing = tree.list_folder(folder)
    return bool(listing.folders or _metadata(tree, folder, listing, ""))


def _read_folder(tree: Tree, root: Path, classes: AbstractSet[str] | None, kind: str) -> Found:
    """Return the photos of a folder: by its metadata files if it has some, else by class folder.

    If they are texts, tables and FASTA files in no class folder come first.
    """
    if kind == "text":
        if files := texts.text_files(tree, root):
            return texts.read_text_files(tree, root, files)
        tree = KindTree(tree, texts.SUFFIXES)
    elif kind == "audio":
        tree = KindTree(tree, audio_files.SUFFIXES)
    listing = tree.list_folder(root)
    manifests = _metadata(tree, root, listing, "")
    if not manifests:
        roles = splits(listing.folders)
        manifests = [
            manifest
            for folder in roles
            for manifest in _metadata(tree, folder, tree.list_folder(folder), folder.name)
        ]
        if len({manifest.folder for manifest in manifests}) < len(roles):
            manifests = []
    if manifests:
        return read_manifests(tree, manifests)
    if isinstance(tree, DiskTree) and (files := parquet_files(tree, root)):
        return read_parquet(files, root)
    found = read_class_folders(tree, root, classes)
    return expand(found) if kind == "text" else found


def _metadata(tree: Tree, folder: Path, listing: Listing, split: str) -> list[Manifest]:
    """Return the metadata files of Hugging Face's imagefolder that have paths and labels."""
    paths = (*(omission.path for omission in listing.omitted), *listing.files)
    tables = [_table(tree, path) for path in sorted(paths) if _is_metadata(tree, path)]
    return [
        Manifest(table=table, folder=folder, split=split)
        for table in tables
        if {"path", "label"} <= known_columns(table.columns).keys()
    ]


def _is_metadata(tree: Tree, path: Path) -> bool:
    """Return True for a metadata file; Parquet files are not read inside archives."""
    is_readable = path.suffix != ".parquet" or tree.file(path) is not None
    return path.name in _METADATA and is_readable


def _table(tree: Tree, path: Path) -> Table:
    if path.suffix == ".parquet":
        return parquet_table(path)
    read_rows = TABLES[path.suffix.casefold()]
    return read_rows(tree.read_table(path), file_name(path.name))
