"""A pooled backbone by subprocess: fit, serve, classify, add a class, compare with one fit."""

from __future__ import annotations

from pathlib import Path

import torch
from support.pictures import pictures

from topwork.bundle.store import Repository
from topwork_trainer import commands
from topwork_trainer.backbones import torchvision_import

LABELS = ("amber", "blue", "crimson")


def test_class_added_to_a_pooled_backbone_gives_the_head_of_one_fit(tmp_path: Path) -> None:
    """Server and fit embed alike: AddClass gives the head of a fit on all classes, bit by bit."""
    data, repository = tmp_path / "data", tmp_path / "repository"
    for label in LABELS:
        (data / label).mkdir(parents=True)
        for index, content in enumerate(pictures(label, 12)):
            (data / label / f"{index}.png").write_bytes(content)
    torch.manual_seed(0)
    torch.save(torchvision_import.build("squeezenet1_1").state_dict(), tmp_path / "weights.pth")
    weights = ("--weights", tmp_path / "weights.pth", "--image-size", "64")
    options = ("--backbone", "squeezenet1_1:pooled", *weights, "--repository", repository, "--json")
    fit = ("fit", data, *options)
    commands.run("topwork_trainer", *fit, "--model", "colours", "--classes", "amber,blue")
    with commands.serving(repository, tmp_path / "log") as served:
        model = ("--address", served.address, "--model", "colours", "--json")
        commands.run("topwork", "add-class", *model, "--label", "crimson", data / "crimson")
        rows = commands.run("topwork", "classify", *model, data / "crimson")
    commands.run("topwork_trainer", *fit, "--model", "joint")
    stored = Repository(repository)
    added, joint = stored.manifest("colours", 2), stored.manifest("joint", 1)
    assert (added.backbone, added.head) == (joint.backbone, joint.head)
    (backbone,) = stored.backbones()
    assert (backbone.name, backbone.width) == ("squeezenet1_1:pooled", 384 + 384 + 512 + 512)
    assert {row["revision"] for row in rows} == {2}
    right = [row["predictions"][0]["label"] == "crimson" for row in rows]
    assert sum(right) > 0.8 * len(right)
