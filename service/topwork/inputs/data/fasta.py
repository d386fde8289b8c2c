"""Reader of FASTA files: sequences of DNA, RNA or proteins, as texts of letters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from topwork.errors import ImageError, InvalidInput
from topwork.inputs.data.photos import Found, Photo, Split
from topwork.inputs.data.tables import clip, decode
from topwork.inputs.data.trees import Tree
from topwork.inputs.folders import Reason
from topwork.inputs.splits import split_role
from topwork.printable import file_name, printable

SUFFIXES = (".fa", ".faa", ".fasta", ".ffn", ".fna", ".frn")
"""Extensions of FASTA files: of any letters, of amino acids, and of nucleic acids."""

_ILLEGAL = re.compile(r"[^A-Za-z*-]")
"""Letters of the IUPAC codes are all of A to Z; ``*`` is a stop, ``-`` a gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A sequence of a file."""

    line: int
    """Number of the line with its header."""
    identifier: str
    description: str
    """Rest of the header."""
    letters: str
    """In upper case, since lower case means the same (NCBI)."""


def parse(content: bytes, name: str) -> list[Record]:
    """Return the records of a FASTA file.

    Raises InvalidInput, with the line, for other letters than those of sequences, for a sequence
    without a header and for a header without a sequence.
    """
    records: list[Record] = []
    header: tuple[int, str] | None = None
    lines: list[str] = []

    def close() -> None:
        if header is None:
            return
        number, text = header
        if not lines:
            raise _invalid(name, number, f"{clip(text)!r} has no sequence")
        identifier, _, description = text[1:].strip().partition(" ")
        records.append(
            Record(
                line=number,
                identifier=identifier,
                description=description.strip(),
                letters="".join(lines).upper(),
            )
        )

    for number, line in enumerate(decode(content, name).splitlines(), start=1):
        if line.startswith(">"):
            close()
            header, lines = (number, line.replace("\t", " ")), []
            continue
        letters = line.strip()
        if not letters or letters.startswith(";"):
            continue
        if header is None:
            raise _invalid(name, number, "a sequence without a header, such as '>id label'")
        if illegal := _ILLEGAL.search(letters):
            place = f"{illegal[0]!r} at column {line.index(letters) + illegal.start() + 1}"
            raise _invalid(name, number, f"{place} is no letter of a sequence")
        lines.append(letters)
    close()
    if not records:
        raise InvalidInput(f"{name} has no sequence", field="data")
    return records


def read_fasta(tree: Tree, files: Sequence[Path]) -> Found:
    """Return the sequences of files that are not in class folders.

    A single file, and files named like splits, have the labels in their headers: ``>id label``. Of
    several others each is a class, with the file's name as label. Raises InvalidInput.
    """
    roles = [split_role(path.stem) for path in files]
    in_headers = len(files) == 1 or all(roles)
    splits: dict[str, dict[str, list[Photo]]] = {"": {}}
    for path, role in zip(files, roles, strict=True):
        split = "" if role in {None, "train"} or len(files) == 1 else path.stem
        name = file_name(path.relative_to(tree.root))
        for photo in _photos(tree.read_table(path), name, "" if in_headers else path.stem):
            splits.setdefault(split, {}).setdefault(photo.label, []).append(photo)
    held_out = {name: Split(photos=photos) for name, photos in sorted(splits.items()) if name}
    return Found(train=Split(photos=splits[""]), held_out=held_out, omitted=[])


def expand(found: Found) -> Found:
    """Return the sequences in the files of class folders, in place of the files."""
    omitted = [*found.omitted]
    return replace(
        found,
        train=_expand(found.train, omitted),
        held_out={name: _expand(split, omitted) for name, split in found.held_out.items()},
        omitted=omitted,
    )


def is_fasta(path: Path) -> bool:
    """Return True if a file is named like a FASTA file."""
    return path.suffix.casefold() in SUFFIXES


def _expand(split: Split, omitted: list[tuple[Reason, str]]) -> Split:
    photos: dict[str, list[Photo]] = {}
    for label, files in split.photos.items():
        photos[label] = []
        for file in files:
            if not is_fasta(Path(file.name)):
                photos[label].append(file)
                continue
            try:
                content = file.path.read_bytes() if file.path else file.read()
            except (OSError, ImageError):
                omitted.append(("unreadable", file.name))
                continue
            photos[label] += _photos(content, file.name, label)
    return replace(split, photos=photos)


def _photos(content: bytes, name: str, label: str) -> Iterator[Photo]:
    """Yield the sequences of a file; their label is ``label``, or, if it is empty, the header's."""
    for record in parse(content, name):
        if not (label or record.description):
            raise _invalid(
                name,
                record.line,
                f"{clip(record.identifier)!r} has no label: write '>id label', or use a file or a "
                "folder per class",
            )
        yield Photo(
            name=printable(f"{name}:{record.line}:{clip(record.identifier)}"),
            label=label or record.description,
            read=partial(bytes, record.letters, "ascii"),
        )


def _invalid(name: str, line: int, fault: str) -> InvalidInput:
    return InvalidInput(printable(f"{name}, line {line}: {fault}"), field="data")
