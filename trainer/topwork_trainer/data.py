"""Which photos there are to learn from: folders of photos, one folder a class."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from topwork.bundle.limits import DEFAULT_LIMITS, Limits
from topwork.bundle.names import check_label
from topwork.engine.embed import Source
from topwork.errors import InvalidInput


def scan(
    data: Path, *, classes: Sequence[str] | None = None, limits: Limits = DEFAULT_LIMITS
) -> list[Source]:
    """Return the files below each folder of ``data``, labelled with the folder's name, sorted.

    ``classes`` names the folders to use; default: all. Hidden files and folders are left out. What
    is in a file is not looked at. Raises InvalidInput if ``data`` is no folder, a class is missing
    or has no valid name, if there are fewer than two classes or a class has too few files.
    """
    if not data.is_dir():
        raise InvalidInput(f"{data} is not a folder", field="data")
    # macOS stores names decomposed; labels are composed.
    folders = {
        unicodedata.normalize("NFC", folder.name): folder
        for folder in sorted(data.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }
    labels = sorted(folders) if classes is None else sorted(set(classes))
    for label in labels:
        if label not in folders:
            raise InvalidInput(
                f"class {label!r} is no folder of {data}, which has {_few(list(folders))}",
                field="classes",
            )
        check_label(label, limits=limits)
    if not 2 <= len(labels) <= limits.max_labels:
        raise InvalidInput(
            f"{data} has {len(labels)} classes ({_few(labels)}); 2 to {limits.max_labels} are "
            "needed, each a folder of photos",
            field="data",
        )
    sources = [
        Source(name=str(file.relative_to(data)), label=label, read=file.read_bytes)
        for label in labels
        for file in _files(folders[label])
    ]
    check_counts(Counter(source.label for source in sources), labels, limits=limits)
    return sources


def check_counts(
    counts: Counter[str], labels: Sequence[str], *, kind: str = "files", limits: Limits
) -> None:
    """Raise InvalidInput unless every label has enough; ``kind`` says what was counted."""
    few = [label for label in labels if counts[label] < limits.min_images_per_label]
    if few:
        named = ", ".join(f"{label!r} has {counts[label]}" for label in few[:5])
        raise InvalidInput(
            f"at least {limits.min_images_per_label} {kind} a class are needed: {named}",
            field="data",
            reason="TOO_FEW_IMAGES",
        )


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10]) or "none"
    return f"{shown}, ..." if len(names) > 10 else shown
