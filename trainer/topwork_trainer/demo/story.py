"""End-to-end demo: train, serve, add a class, and compare with a full retrain.

Runs the commands ``topwork`` and ``topwork-train`` as a user would type them.
"""

from __future__ import annotations

import shutil
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from topwork import tables
from topwork.errors import InvalidInput
from topwork.terminal import Console
from topwork_trainer import commands
from topwork_trainer.commands import JsonRow
from topwork_trainer.data import Photos, scan

IMAGES_PER_LABEL = 100
"""Number of rendered pictures of each kind."""

HELD_OUT_EVERY = 4
"""Raising it holds out fewer photos: every n-th photo of a class is tested and not learnt from."""


def run_demo(data: Path | None, *, new: str | None, work: Path | None, console: Console) -> None:
    """Fit all classes but ``new``, serve, classify, add ``new``, classify, and print a table.

    Raises InvalidInput if there are fewer than three classes or ``new`` is not one of them.
    """
    with tempfile.TemporaryDirectory(prefix="topwork-demo-") as temporary:
        _run_demo(data, new, work or Path(temporary), console)


def _run_demo(data: Path | None, new: str | None, work: Path, console: Console) -> None:
    if data is None:
        data = work / "photos"
        _step(console, "Render pictures of five kinds of flowers (drawn, not photos)")
        commands.run("topwork_trainer", "demo-data", data, "--images-per-label", IMAGES_PER_LABEL)
    train, held_out = work / "train", work / "held-out"
    photos = scan(data.absolute())
    for line in (*(group.line() for group in photos.left_out), *photos.notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    labels = split(photos, train, held_out)
    new = unicodedata.normalize("NFC", new or labels[-1])
    old = [label for label in labels if label != new]
    if len(old) != len(labels) - 1 or len(old) < 2:
        raise InvalidInput(
            f"{new!r} must be one of at least three classes, which are: {', '.join(labels)}",
            field="new",
        )
    repository = work / "repository"

    _step(console, f"Train on {len(old)} classes: {', '.join(old)}")
    fit = ("fit", train, "--repository", repository, "--no-cache", "--json")
    commands.run("topwork_trainer", *fit, "--model", "demo", "--classes", ",".join(old))
    with commands.serving(repository, work / "server.log") as server:
        address = server.address
        classify = _Classify(address, held_out)
        _step(console, "Classify photos that were held out")
        before = classify("demo", labels)
        _step(console, f"Add a class to the running server: {new}")
        (added,) = commands.run(
            "topwork", "add-class", "--address", address, "--model", "demo", "--label", new,
            "--json", train / new,
        )  # fmt: skip
        _step(console, "Classify the same photos again")
        after = classify("demo", labels)
        _step(console, f"For comparison, train on all {len(labels)} classes from the images")
        (retrained,) = commands.run("topwork_trainer", *fit, "--model", "retrained")
        commands.wait_for_model(address, "retrained")
        joint = classify("retrained", labels)
    console.print(_table(old, new, before, after, joint, added, retrained))
    console.print(
        f"Largest difference in probability between AddClass and the full retrain: "
        f"{_largest_difference(after, joint):.1e}",
        highlight=False,
    )


def split(photos: Photos, train: Path, held_out: Path) -> list[str]:
    """Put every fourth photo of a class below ``held_out``, the others below ``train``.

    A photo that is a file is linked, others are copied. Returns the labels, sorted.
    """
    position: dict[str, int] = {}
    for photo in photos.train:
        index = position[photo.label] = position.get(photo.label, -1) + 1
        target = held_out if index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else train
        suffix = Path(photo.name).suffix if photo.path is None else photo.path.suffix
        link = target / photo.label / f"{index:05d}{suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        if photo.path is None:
            link.write_bytes(photo.read())
        else:
            link.symlink_to(photo.path)
    return sorted(position)


def check_not_inside(photos: Path, held_out: Path) -> None:
    """Raise InvalidInput if ``held_out`` is inside ``photos``: it would become a class."""
    if photos.resolve() in [held_out.resolve(), *held_out.resolve().parents]:
        raise InvalidInput(
            f"the held-out folder {held_out} must not be inside {photos}", field="held_out"
        )


def hold_out(photos: Path, held_out: Path) -> None:
    """Move every fourth file of each folder of ``photos`` to the same path below ``held_out``."""
    for folder in filter(Path.is_dir, sorted(photos.iterdir())):
        (held_out / folder.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir())[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]:
            shutil.move(file, held_out / folder.name / file.name)


@dataclass(frozen=True, slots=True)
class _Classify:
    """Classifies the held-out photos and returns the answers by label."""

    address: str
    held_out: Path

    def __call__(self, model: str, labels: Sequence[str]) -> dict[str, list[JsonRow]]:
        photos = ("--address", self.address, "--model", model, "--top-k", 1000, "--json")
        return {
            label: commands.run("topwork", "classify", *photos, self.held_out / label, check=False)
            for label in labels
        }


def _accuracy(answers: dict[str, list[JsonRow]], labels: Sequence[str]) -> float:
    """Return the share of right answers among the readable photos of ``labels``."""
    right = [
        row["predictions"][0]["label"] == label
        for label in labels
        for row in answers[label]
        if row["error"] is None
    ]
    return float(sum(right) / max(1, len(right)))


def _largest_difference(added: dict[str, list[JsonRow]], joint: dict[str, list[JsonRow]]) -> float:
    def probabilities(row: JsonRow) -> dict[str, float]:
        return {each["label"]: float(each["probability"]) for each in row["predictions"]}

    return max(
        abs(probabilities(left)[label] - probability)
        for key in added
        for left, right in zip(added[key], joint[key], strict=True)
        for label, probability in probabilities(right).items()
    )


def _table(
    old: Sequence[str],
    new: str,
    before: dict[str, list[JsonRow]],
    after: dict[str, list[JsonRow]],
    joint: dict[str, list[JsonRow]],
    added: JsonRow,
    retrained: JsonRow,
) -> Table:
    photos = sum(len(rows) for rows in before.values())
    everything = (before, after, joint)
    headers = (f"{photos} held-out photos", "before", "after AddClass", "full retrain")
    rows = [
        (
            f"accuracy on the {len(old)} old classes",
            *(f"{_accuracy(answers, old):.3f}" for answers in everything),
        ),
        (f"recall of {new}", *(f"{_accuracy(answers, [new]):.3f}" for answers in everything)),
        (
            "seconds until served",
            "",
            f"{added['seconds']['total']:.2f}",
            f"{retrained['seconds']['total']:.2f}",
        ),
    ]
    return tables.table(headers, rows)


def _step(console: Console, text: str) -> None:
    console.print(f"\n[bold]{text}[/]", highlight=False)
