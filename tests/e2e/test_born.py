"""The story without a trainer: an empty repository, a bundled backbone, and commands."""

from __future__ import annotations

from pathlib import Path

from topwork.bundle.store import Repository
from topwork_trainer import commands

LABELS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def test_four_flowers_then_a_fifth_without_a_trainer(
    exported: Path, rendered: Path, tmp_path: Path
) -> None:
    """A server stores its bundled backbone; the heads equal those of ``topwork-train fit``."""
    (bundled,) = (exported / "backbones").iterdir()
    root = tmp_path / "repository"
    with commands.serving(root, tmp_path / "log", "--bundled-backbone", bundled) as served:
        at = ("--address", served.address)
        (listed,) = commands.run("topwork", "backbones", *at, "--json")
        assert (listed["name"], listed["input"]) == ("efficientnet_lite0", 224)
        (created,) = commands.run("topwork", "create", *at, "--json", "flowers")
        assert created["missing_labels"] == 2
        for number, label in enumerate(LABELS, 1):
            options = ("--model", "flowers", "--label", label, "--json")
            (added,) = commands.run("topwork", "add-class", *at, *options, rendered / label)
            assert (added["revision"], added["missing_labels"]) == (
                number - 1,
                max(0, 2 - number),
            )
        tulips = next((rendered / "tulips").iterdir())
        (row,) = commands.run("topwork", "classify", *at, "--model", "flowers", "--json", tulips)
        assert row["predictions"][0]["label"] == "tulips"
    fit = ("fit", rendered, "--repository", root, "--no-cache", "--json", "--model")
    commands.run("topwork_trainer", *fit, "four", "--classes", ",".join(LABELS[:4]))
    commands.run("topwork_trainer", *fit, "five")
    repository = Repository(root)
    for revision, model in ((3, "four"), (4, "five")):
        born, fitted = repository.manifest("flowers", revision), repository.manifest(model, 1)
        assert (born.head, born.data_digest) == (fitted.head, fitted.data_digest)
