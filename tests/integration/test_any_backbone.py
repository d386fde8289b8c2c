"""Backbones of other makers, with random weights: export, fit, int8, serving and AddClass."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support import onnx_files, servers, towers
from support.pictures import picture

from topwork import Client
from topwork.bundle.opening import open_repository
from topwork.errors import InvalidInput
from topwork_trainer.backbones import timm_import
from topwork_trainer.cli.commands import cli
from topwork_trainer.finetuning.settings import FinetuneConfig
from topwork_trainer.fit.fit import FitConfig, FitResult, fit

pytestmark = pytest.mark.slow

LABELS = ("amber", "blue", "green", "crimson")
ADDED = "violet"
COUNT = 10

FAMILIES: tuple[str, ...] = ("resnet", "vit:cls-mean")
"""Endings of the names of timm's smallest networks, one of each family."""

TOWERS: tuple[str, ...] = ()
"""Families of image towers of transformers; the tests of towers export one in any case."""

if "TOPWORK_ALL_FAMILIES" in os.environ:  # minutes of exports
    FAMILIES += ("byobnet", "convnext", "efficientnet", "mambaout", "maxvit", "nfnet", "vit")
    TOWERS = towers.FAMILIES


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``data``, folders of five labels, and a repository."""
    folder = tmp_path_factory.mktemp("any")
    for label in (*LABELS, ADDED):
        (folder / "data" / label).mkdir(parents=True)
        for index in range(COUNT):
            (folder / "data" / label / f"{index:02d}.png").write_bytes(picture(label, index))
    (folder / "repository").mkdir()
    return folder


@pytest.fixture(scope="module")
def client(root: Path) -> Iterator[Client]:
    """Yield a client of a server of the repository."""
    with servers.running(root / "repository") as server, Client(server.address) as connected:
        yield connected


@pytest.fixture(scope="module", params=[*FAMILIES, *TOWERS, "own"])
def config(request: pytest.FixtureRequest, root: Path) -> FitConfig:
    """Return the settings of a fit of four labels, on a network, a tower or an ONNX file."""
    name = request.param
    plain = FitConfig(
        data=root / "data",
        model=name.replace(":", "-"),
        repository=root / "repository",
        classes=LABELS,
        backbone=name,
    )
    if name == "own":
        file = onnx_files.save(onnx_files.classifier(), root / "own.onnx")
        options = ["--onnx", str(file), "--repository", str(plain.repository), "--licence", "MIT"]
        done = CliRunner().invoke(cli, ["backbone", "add", "own", *options])
        assert done.exit_code == 0, done.output
        return plain
    if name in TOWERS:
        folder = towers.save(name, root / name)
        return replace(plain, backbone=f"hf/local-dir:{folder}")
    torch.manual_seed(0)
    module = timm_import.package().create_model(f"test_{name.partition(':')[0]}", num_classes=7)
    torch.save(module.state_dict(), weights := root / f"{plain.model}.pth")
    return replace(plain, backbone=f"timm/test_{name}", weights=weights)


@pytest.fixture(scope="module")
def fitted(config: FitConfig) -> FitResult:
    """Return a fit of four labels."""
    return fit(config, lambda *_: None)


def test_served_model_agrees_with_its_fit(
    config: FitConfig, fitted: FitResult, client: Client
) -> None:
    """The server's backbone gives the embeddings of the fit: most training photos are right."""
    model = fitted.manifest.model
    servers.eventually(lambda: f"models/{model}" in {each.name for each in client.models()})
    right = 0
    for label in LABELS:
        photos = [path.read_bytes() for path in sorted((Path(config.data) / label).iterdir())]
        results = client.classify(model, photos).results
        right += sum(result.predictions[0].label == label for result in results)
    assert right > 0.8 * COUNT * len(LABELS)
    assert client.model(model).loaded_backbone.agreement > 0.999


def test_add_class_gives_the_head_of_a_full_fit(
    config: FitConfig, fitted: FitResult, client: Client
) -> None:
    """A class that is added later changes nothing: the head is that of a fit on all photos."""
    files = sorted((Path(config.data) / ADDED).iterdir())
    pairs = [(path.name, path.read_bytes()) for path in files]
    *_, finished = client.watch(client.add_class(config.model, ADDED, pairs).name)
    assert list(finished.result().revision.labels) == sorted([*LABELS, ADDED])
    both = fit(replace(config, model=f"{config.model}-all", classes=None), lambda *_: None)
    added = open_repository(config.repository).manifest(config.model, fitted.manifest.revision + 1)
    assert added.labels == both.manifest.labels
    assert added.head == both.manifest.head


@pytest.mark.parametrize("config", [*FAMILIES, *TOWERS], indirect=True)
def test_int8_is_fitted(config: FitConfig, fitted: FitResult) -> None:
    """The backbone can be quantised, and the head learns from its embeddings."""
    int8 = fit(replace(config, model=f"{config.model}-int8", precision="int8"), lambda *_: None)
    assert int8.backbone.precision == "int8"
    assert int8.backbone.twin == fitted.backbone.digest
    assert int8.metrics.accuracy > 0.5


@pytest.mark.parametrize("config", ["own"], indirect=True)
def test_onnx_backbone_is_described(config: FitConfig, fitted: FitResult) -> None:
    """The revision has the name, licence and file of the backbone."""
    info = fitted.backbone
    assert (info.name, info.licence, info.source) == ("own", "MIT", "own.onnx")
    assert open_repository(config.repository).added_backbones() == {"own": info.digest}


@pytest.mark.parametrize("config", ["own"], indirect=True)
@pytest.mark.parametrize(
    "change",
    [
        {"finetuning": FinetuneConfig(unfreeze="last:1")},
        {"backbone": "own@64"},
        {"backbone": "own@x2"},
        {"backbone": "own+efficientnet_lite0"},
        {"weights": Path(__file__)},
    ],
)
def test_onnx_backbone_cannot_be_changed(change: dict[str, Any], config: FitConfig) -> None:
    """Fine-tuning, joining and other weights, sizes and views need torch, and are refused."""
    with pytest.raises(InvalidInput, match="'own' was added from a"):
        fit(replace(config, **change), lambda *_: None)
