"""Export to ONNX: parity with torch, portability, views and joined backbones."""

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from topwork.inputs.preprocess import PreprocessSpec
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice, TorchBackbone
from topwork_trainer.backbones.export import IR_VERSION, OPSET, ExportedBackbone, export
from topwork_trainer.backbones.joined import Joined
from topwork_trainer.backbones.parity import (
    Embed,
    ExportError,
    check_parity,
    structured_images,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: two that wait for each other on busy cores take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def open_session(model: bytes) -> Embed:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        (embedding,) = session.run(["embedding"], {"image": images})
        return np.asarray(embedding)

    return embed


@pytest.fixture(scope="module")
def lite0() -> TorchBackbone:
    return backbones.load(BackboneChoice(name="efficientnet_lite0"))


@pytest.fixture(scope="module")
def exported(lite0: TorchBackbone) -> ExportedBackbone:
    return export(lite0, open_session=open_session)


class Small(nn.Module):
    """Backbone with batch norms and dropout, which behave differently in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 8)."""
        features: Tensor = self.layers(images)
        return features.mean(dim=(2, 3))


class Tied(Small):
    """Backbone that behaves differently for batches of two, the size of the exporter's example."""

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 8)."""
        return super().forward(images) * (1 if images.shape[0] == 2 else 2)


def backbone_of(module: nn.Module) -> TorchBackbone:
    return TorchBackbone(
        name="small",
        identity="small:0",
        module=module.eval(),
        mean=(100.0, 110.0, 120.0),
        std=(50.0, 60.0, 70.0),
        spec=PreprocessSpec(resize=32, crop=32),
        width=8,
        licence="none",
        source="here",
        weights_sha256="0" * 64,
    )


@pytest.fixture(scope="module")
def small() -> ExportedBackbone:
    return export(backbone_of(Small()), open_session=open_session)


@pytest.fixture(scope="module")
def small_of_two_views() -> ExportedBackbone:
    backbone = dataclasses.replace(backbone_of(Small()), views=2)
    return export(backbone, open_session=open_session)


def test_numbers_agree_with_torch(lite0: TorchBackbone, exported: ExportedBackbone) -> None:
    """The graph gives for pixels the embeddings that torch gives for normalised pixels."""
    images = np.random.default_rng(1).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.inference_mode():
        expected = lite0.module(pixels).numpy()
    np.testing.assert_allclose(open_session(exported.onnx)(images), expected, atol=1e-4)
    assert exported.parity.images == 12
    assert 0 < exported.parity.max_abs_difference < 1e-4
    assert exported.parity.min_cosine > 0.999999


@pytest.mark.parametrize("count", [1, 3, 8])
def test_embedding_does_not_depend_on_the_batch(count: int, exported: ExportedBackbone) -> None:
    """An image has the same embedding alone and in a batch of any size."""
    embed = open_session(exported.onnx)
    images = structured_images(224)[:count]
    alone = np.concatenate([embed(image[None]) for image in images])
    np.testing.assert_allclose(embed(images), alone, atol=1e-5)


def test_batch_norms_are_folded_into_convolutions(exported: ExportedBackbone) -> None:
    """Batch norms and padding are folded into convolutions, and no node computes a shape."""
    graph = onnx.load_from_string(exported.onnx).graph
    operators = Counter(node.op_type for node in graph.node)
    prologue = {"Transpose": 1, "Cast": 1, "Sub": 1, "Div": 1}
    assert operators == prologue | {"Conv": 49, "Clip": 33, "Add": 9, "ReduceMean": 1}


def test_model_is_portable(exported: ExportedBackbone) -> None:
    """The model is a single valid file of pinned versions, without paths of this machine."""
    model = onnx.load_from_string(exported.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == IR_VERSION
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert not any(weight.external_data for weight in model.graph.initializer)
    assert b".py" not in exported.onnx
    session = ort.InferenceSession(exported.onnx, providers=["CPUExecutionProvider"])
    (image,), (embedding,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [224, 224, 3])
    assert (embedding.name, embedding.shape[1:]) == ("embedding", [1280])
    assert image.shape[0] == embedding.shape[0] == "batch"


def test_export_is_deterministic(small: ExportedBackbone) -> None:
    """Exporting the same backbone twice gives the same bytes."""
    assert export(backbone_of(Small()), open_session=open_session).onnx == small.onnx


def test_export_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    """Messages of torch's exporter reach neither standard output nor standard error."""
    export(backbone_of(Small()), open_session=open_session)
    assert capfd.readouterr() == ("", "")


def test_training_mode_is_left_before_export() -> None:
    """A backbone in training mode is exported with its running statistics."""
    backbone = backbone_of(Small())
    images = torch.randn(4, 3, 32, 32)
    expected = backbone.module(images)
    backbone.module.train()
    exported = export(backbone, open_session=open_session)
    assert torch.equal(backbone.module(images), expected)
    assert exported.parity.max_abs_difference < 1e-5


def test_backbone_that_depends_on_the_batch_size_is_refused() -> None:
    """A backbone that behaves differently for the example's batch size cannot be exported."""
    with pytest.raises(ExportError, match="small"):
        export(backbone_of(Tied()), open_session=open_session)


def test_normalisation_is_per_channel() -> None:
    """Mean and standard deviation of the backbone are applied per channel, in RGB order."""
    pixel = np.array([150, 230, 50], dtype=np.uint8)  # 1, 2 and -1 after normalisation
    backbone = dataclasses.replace(backbone_of(nn.AdaptiveAvgPool2d(1)), width=3)
    flat = nn.Sequential(backbone.module, nn.Flatten())
    exported = export(dataclasses.replace(backbone, module=flat), open_session=open_session)
    embedding = open_session(exported.onnx)(np.broadcast_to(pixel, (1, 32, 32, 3)).copy())
    np.testing.assert_allclose(embedding, [[1, 2, -1]], atol=1e-6)


def small_images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_two_views_are_the_mean_of_image_and_mirror_image(
    small: ExportedBackbone, small_of_two_views: ExportedBackbone
) -> None:
    """A graph with two views gives the mean of the plain graph's two embeddings."""
    single, both = open_session(small.onnx), open_session(small_of_two_views.onnx)
    images = small_images(3)
    expected = (single(images) + single(images[:, :, ::-1].copy())) / 2
    np.testing.assert_allclose(both(images), expected, atol=1e-6)
    assert not np.allclose(expected, single(images), atol=1e-4)


def test_two_views_share_the_weights(
    small: ExportedBackbone, small_of_two_views: ExportedBackbone
) -> None:
    """The graph with two views has every weight once, and batch norms are folded."""
    graphs = [onnx.load_from_string(made.onnx).graph for made in (small, small_of_two_views)]
    floats = [
        sum(int(np.prod(weight.dims)) for weight in graph.initializer if weight.data_type == 1)
        for graph in graphs
    ]
    assert floats[0] == floats[1]
    assert Counter(node.op_type for node in graphs[1].node)["Conv"] == 1


def test_joined_backbones_export_as_one_graph() -> None:
    """Two joined parts with their own normalisation and two views pass the parity check."""
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(3, 5, 5, stride=3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts = [
        (Small(), (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)),
        (other, (0.0,) * 3, (255.0,) * 3),
    ]
    joined = Joined(parts).eval()
    backbone = dataclasses.replace(
        backbone_of(joined), mean=(0.0,) * 3, std=(1.0,) * 3, width=13, views=2
    )
    embedding = open_session(export(backbone, open_session=open_session).onnx)(small_images(2))
    assert embedding.shape == (2, 13)
    lengths = np.linalg.norm(embedding[:, :8], axis=1), np.linalg.norm(embedding[:, 8:], axis=1)
    np.testing.assert_allclose(lengths, 1, atol=0.05)  # mean of two similar unit vectors


def test_export_refuses_different_embeddings() -> None:
    """If ONNX Runtime's embeddings differ from torch's the export fails."""

    def open_wrong(model: bytes) -> Embed:
        embed = open_session(model)
        return lambda images: embed(images[::-1].copy())

    with pytest.raises(ExportError, match="disagrees with torch"):
        export(backbone_of(Small()), open_session=open_wrong)


def _one_element(e: NDArray[np.float32]) -> NDArray[np.float32]:
    e[2, 3] += 2e-4 * np.abs(e).max()
    return e


def _one_nan(e: NDArray[np.float32]) -> NDArray[np.float32]:
    e[1, 1] = np.nan
    return e


@pytest.mark.parametrize(
    "spoil",
    [_one_element, _one_nan, np.flipud, np.zeros_like, lambda e: e[:-1], lambda e: e * 1.001],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_check_parity_refuses_differences(spoil: Embed) -> None:
    """A changed element, NaN, another order, zeros, a missing row and a scale are all refused."""
    expected = np.random.default_rng(0).standard_normal((4, 16), dtype=np.float32)
    assert check_parity(expected, expected.copy()).max_abs_difference == 0
    with pytest.raises(ExportError):
        check_parity(expected, spoil(expected.copy()))  # type: ignore[arg-type] # floats here


def test_check_parity_accepts_an_embedding_of_zeros() -> None:
    """Two embeddings of zeros count as equal, although their cosine is undefined."""
    expected = np.random.default_rng(0).standard_normal((4, 16), dtype=np.float32)
    expected[1] = 0
    assert check_parity(expected, expected.copy()).min_cosine == 1


def test_structured_images_have_different_embeddings(exported: ExportedBackbone) -> None:
    """The images of the parity check use the full range, and no two have similar embeddings."""
    images = structured_images(224)
    assert (images.min(), images.max()) == (0, 255)
    embeddings = open_session(exported.onnx)(images)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    assert (unit @ unit.T - np.eye(8)).max() < 0.99
