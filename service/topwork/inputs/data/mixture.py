"""Recognition of texts and audio among the files that a reader of photos found and left out."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePath

from topwork.audio_files import is_audio
from topwork.errors import InvalidInput
from topwork.inputs.data.photos import Found, Split
from topwork.inputs.data.texts import SUFFIXES
from topwork.printable import file_name


def has_only_texts(data: Path, found: Found, classes: AbstractSet[str] | None) -> bool:
    """Return True if the classes of ``found``, read as photos, have texts and no photos.

    Text files beside the photos of a class, such as captions, are left out. Raises InvalidInput if
    some classes have photos, and others texts only.
    """
    photos: dict[str, str] = {}
    texts: dict[str, str] = {}
    for split in (found.train, *found.held_out.values()):
        for label, name in _files(split, found):
            if classes is None or label in classes:
                (texts if _is_text(name) else photos).setdefault(label, name)
    if photos and texts.keys() - photos.keys():
        label = min(texts.keys() - photos.keys())
        raise InvalidInput(
            f"{file_name(data)} has photos ({next(iter(photos.values()))}) and texts "
            f"({texts[label]}): a model takes inputs of one kind; pass --kind to use one of them",
            field="data",
            reason="INPUT_KIND",
        )
    return bool(texts) and not photos


def has_only_audio(data: Path, found: Found, classes: AbstractSet[str] | None) -> bool:
    """Return True if all files of ``found``, read as photos, are audio.

    A few beside the photos of a class are left out later, as unreadable photos. Raises InvalidInput
    if there are photos, and in a class at least as many audio files.
    """
    audio: dict[str, list[str]] = {}
    photos: dict[str, list[str]] = {}
    for split in (found.train, *found.held_out.values()):
        for label, own in split.photos.items():
            if classes is None or label in classes:
                for photo in own:
                    (audio if is_audio(photo.name) else photos).setdefault(label, []).append(
                        photo.name
                    )
    if photos and (
        odd := [name for name in audio if len(audio[name]) >= len(photos.get(name, ()))]
    ):
        raise InvalidInput(
            f"{file_name(data)} has audio ({audio[min(odd)][0]}) and others "
            f"({photos[min(photos)][0]}): a model takes inputs of one kind; pass --kind to use one "
            "of them",
            field="data",
            reason="INPUT_KIND",
        )
    return bool(audio) and not photos


def _files(split: Split, found: Found) -> Iterator[tuple[str, str]]:
    """Yield the label and name of each photo, and of each text that was left out of its folder."""
    for label, photos in split.photos.items():
        for photo in photos:
            yield label, photo.name
    labels = {folder: label for label, folders in split.folders.items() for folder in folders}
    for reason, name in found.omitted:
        if reason == "text" and _is_text(name):
            folders = [str(folder) for folder in PurePath(name).parents]
            for folder in folders:
                if folder in labels:
                    yield labels[folder], name


def _is_text(name: str) -> bool:
    return PurePath(name).suffix.casefold() in SUFFIXES
