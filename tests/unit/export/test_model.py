"""Export of a revision as one ONNX file: answers, metadata, refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from support import tiny
from support.pictures import COLOURS, encode, pictures

import topwork
from topwork.bundle.comparison import Gate, Rejection
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, NotFound, NotReady
from topwork.export import model as export_module
from topwork.export.model import Portable, export
from topwork.inputs.image import preprocess
from topwork.storage.files import sha256

LABELS = ("amber", "blue", "crimson", "green")
PAGE = (Path(__file__).parents[3] / "docs" / "export.md").read_text()


def photos() -> list[bytes]:
    """Return pictures that no model was trained on, also of labels that it does not know."""
    return [content for label in COLOURS for content in pictures(label, 4, start=100)]


def session(model: bytes, **settings: str) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime as anyone would open it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name, value in settings.items():
        options.add_session_config_entry(f"session.{name}", value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def served(
    repository: Repository, images: Sequence[bytes]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return probabilities in label order, and unknown probabilities, of Topwork itself."""
    opened = topwork.open(repository.root, "colours", threads=1)
    results = opened.predict(images, top_k=len(opened.labels))
    rows = [{each.label: each.probability for each in result.predictions} for result in results]
    return (
        np.array([[row[label] for label in opened.labels] for row in rows], np.float32),
        np.array([result.unknown_probability for result in results], np.float32),
    )


def pixels(images: Sequence[bytes]) -> NDArray[np.uint8]:
    """Return the input of the graph."""
    return np.stack([preprocess(image, tiny.SPEC) for image in images])


@pytest.fixture(scope="module", params=["logistic", "kernel", "ridge"])
def repository(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    """Return a repository with a model of each kind of head."""
    made = Repository(tmp_path_factory.mktemp("repository"))
    exemplars = tiny.embed_pictures({label: pictures(label, 20) for label in LABELS})
    tiny.publish(made, "colours", exemplars, recipe=Recipe(head=request.param))
    return made


@pytest.fixture(scope="module")
def portable(repository: Repository) -> Portable:
    """Return the export of the model."""
    return export(repository, "colours")


def test_answers_are_the_servers_to_the_last_bit(
    repository: Repository, portable: Portable
) -> None:
    """They are, whatever the batch, if ONNX Runtime does not rearrange weights."""
    probabilities, unknown = served(repository, photos())
    opened, inputs = session(portable.model, disable_prepacking="1"), pixels(photos())
    for size in (1, 2, 7):
        batches = [inputs[at : at + size] for at in range(0, len(inputs), size)]
        found = [opened.run(["probabilities", "unknown"], {"image": batch}) for batch in batches]
        np.testing.assert_array_equal(np.concatenate([each for each, _ in found]), probabilities)
        np.testing.assert_array_equal(np.concatenate([each for _, each in found]), unknown)


def test_answers_are_the_servers_with_default_options(
    repository: Repository, portable: Portable
) -> None:
    """Rearranged weights change no more than the rounding."""
    probabilities, unknown = served(repository, photos())
    found, found_unknown = session(portable.model).run(None, {"image": pixels(photos())})
    np.testing.assert_allclose(found, probabilities, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found_unknown, unknown, rtol=0, atol=1e-4)


def test_metadata_describe_the_model(repository: Repository, portable: Portable) -> None:
    """All that another program needs is in the file."""
    manifest = repository.manifest("colours", 1)
    metadata = session(portable.model).get_modelmeta().custom_metadata_map
    assert metadata.keys() == portable.facts.keys()
    assert metadata["format"] == "topwork/1"
    assert (metadata["model"], metadata["revision"]) == ("colours", "1")
    assert json.loads(metadata["labels"]) == list(LABELS)
    assert json.loads(metadata["unknown_threshold"]) == manifest.chosen.unknown_threshold
    spec = {"resize": 16, "crop": 16, "interpolation": "bicubic", "deep_grey": "depth"}
    assert json.loads(metadata["preprocess"]) == spec
    assert metadata["backbone_sha256"] == sha256(tiny.backbone_model())
    assert metadata["head_sha256"] == sha256(repository.head(manifest))
    assert metadata["weights_licence"] == "Apache-2.0"
    keys = re.findall(r"`([a-z_0-9]+)`", PAGE[PAGE.index("| key | |") : PAGE.index("## From")])
    assert metadata.keys() <= set(keys)


def test_inputs_and_outputs(portable: Portable) -> None:
    """Pixels in; probabilities and unknown out, for any number of images."""
    opened = session(portable.model)
    (image,) = opened.get_inputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [16, 16, 3])
    outputs = {output.name: (output.type, output.shape) for output in opened.get_outputs()}
    assert outputs == {
        "probabilities": ("tensor(float)", ["N", 4]),
        "unknown": ("tensor(float)", ["N"]),
    }
    imports = onnx.load_model_from_string(portable.model).opset_import
    assert [(entry.domain, entry.version) for entry in imports] == [("", 18)]


def test_export_is_deterministic(repository: Repository, portable: Portable) -> None:
    """An equal revision gives equal bytes."""
    assert export(repository, "colours", revision=1) == portable


def test_head_without_detection_has_one_output(colours: Repository) -> None:
    """The file has neither the output nor the threshold."""
    manifest = colours.manifest("colours", 1)
    weights = np.random.default_rng(0).normal(size=(4, tiny.WIDTH)).astype(np.float32)
    chosen = replace(manifest.chosen, unknown_threshold=None)
    head = tiny.linear_head(weights, np.zeros(4, np.float32))
    copy = tiny.publish_copy(colours, replace(manifest, chosen=chosen), head=head)
    made = export(colours, "colours", revision=copy.revision)
    assert "unknown_threshold" not in made.facts
    assert [output.name for output in session(made.model).get_outputs()] == ["probabilities"]


def test_fp32_exports_the_twin(tmp_path: Path) -> None:
    """The stored backbone is the default; fp32 takes the one that it was quantised from."""
    repository = tiny.saturating_repository(tmp_path)
    stored = export(repository, "colours").facts
    twin = export(repository, "colours", precision="fp32").facts
    assert (stored["precision"], twin["precision"]) == ("int8", "fp32")
    assert stored["backbone_sha256"] == sha256(tiny.saturating_backbone_model())
    assert twin["backbone_sha256"] == sha256(tiny.backbone_model())


def test_fp32_of_an_int8_backbone_without_twin_is_refused(tmp_path: Path) -> None:
    """It is not exported in another precision."""
    repository = Repository(tmp_path)
    exemplars = tiny.embed_pictures({label: pictures(label, 20) for label in LABELS})
    model = tiny.saturating_backbone_model()
    info = replace(tiny.backbone_info(model), precision="int8")
    tiny.publish(repository, "colours", exemplars, backbone=model, info=info)
    with pytest.raises(NotReady, match="backbone tiny is int8 and has no fp32 twin"):
        export(repository, "colours", precision="fp32")


def test_unknown_and_rejected_revisions_are_refused(colours: Repository) -> None:
    """The errors are those of the server."""
    with pytest.raises(NotFound, match="models/shapes"):
        export(colours, "shapes")
    with pytest.raises(NotFound, match="models/colours/revisions/7"):
        export(colours, "colours", revision=7)
    rejection = Rejection(gate=Gate(), failures=("it is worse",))
    rejected = tiny.publish_copy(
        colours, replace(colours.manifest("colours", 1), rejection=rejection)
    )
    with pytest.raises(NotReady, match="was rejected: it is worse"):
        export(colours, "colours", revision=rejected.revision)


def two_inputs() -> bytes:
    """Return a backbone of two images, as an ensemble may have."""
    model = onnx.load_model_from_string(tiny.backbone_model())
    value = helper.make_tensor_value_info("second", TensorProto.UINT8, ["N", 16, 16, 3])
    model.graph.input.append(value)
    return model.SerializeToString()


def other_size() -> bytes:
    """Return a backbone whose input is not that of the preprocess spec."""
    model = onnx.load_model_from_string(tiny.backbone_model())
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("backbone", "inputs"),
    [
        pytest.param(two_inputs(), "image, second", id="two inputs"),
        pytest.param(other_size(), "image", id="another size"),
    ],
)
def test_backbone_that_takes_no_single_image_is_refused(
    tmp_path: Path, backbone: bytes, inputs: str
) -> None:
    """The message has the backbone's inputs and what they should be."""
    repository = Repository(tmp_path)
    exemplars = tiny.embed_pictures({label: pictures(label, 20) for label in LABELS})
    info = tiny.backbone_info(backbone)
    tiny.publish(repository, "colours", exemplars, backbone=backbone, info=info)
    with pytest.raises(NotReady, match=rf"{inputs}, not one batch of uint8 \(16, 16, 3\)"):
        export(repository, "colours")


def test_damaged_backbone_is_refused(colours: Repository) -> None:
    """A file with another checksum is not exported."""
    path = next(colours.root.glob("backbones/*/backbone.onnx"))
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(Corrupt, match=r"backbone\.onnx has sha256"):
        export(colours, "colours")


def test_wrong_graph_is_not_exported(colours: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is compared with backbone and head."""
    join = export_module._join

    def wrong(backbone: bytes, head: bytes, *others: Any) -> bytes:
        model = onnx.load_model_from_string(join(backbone, head, *others))
        (weights,) = (each for each in model.graph.initializer if each.name.endswith("/bias"))
        weights.raw_data = np.arange(4, dtype=np.float32).tobytes()
        return model.SerializeToString()

    monkeypatch.setattr(export_module, "_join", wrong)
    with pytest.raises(Corrupt, match="the exported graph is wrong: its probabilities differ by"):
        export(colours, "colours")


def test_recipe_of_the_page(
    colours: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python code of docs/export.md gives Topwork's pixels, also of turned and large JPEGs."""
    (recipe,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 41, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "plain.png": encode(photo),
        "grey.png": encode(photo.convert("L")),
        "turned.jpg": encode(photo, "JPEG", exif=turned),
        "large.jpg": encode(photo.resize((410, 300)), "JPEG"),
        "large-turned.jpg": encode(photo.resize((410, 300)), "JPEG", exif=turned),
    }
    monkeypatch.chdir(tmp_path)
    Path("flowers.onnx").write_bytes(export(colours, "colours").model)
    names: dict[str, Any] = {}
    exec(recipe, names)  # noqa: S102  # it is our page
    assert names["labels"] == list(LABELS)
    for name, content in files.items():
        Path(name).write_bytes(content)
        np.testing.assert_array_equal(names["preprocess"](name), preprocess(content, tiny.SPEC))
