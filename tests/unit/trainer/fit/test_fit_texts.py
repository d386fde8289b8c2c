"""Fit, rank and audit on texts: the model, its audit, and refused settings and data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support import text_encoders, texts
from support.texts import TOPICS

import topwork
from topwork.bundle.recipe import Recipe
from topwork.bundle.store import Repository
from topwork.errors import InvalidInput
from topwork.inputs.image_source import ImageSource
from topwork.inputs.text import TextSpec, prepare
from topwork.learning.learn import learn
from topwork.runtime.backend import open_session
from topwork.storage.files import sha256
from topwork.training.embed import embed
from topwork_trainer.audit import AuditConfig, audit
from topwork_trainer.backbones.texts.folder import FolderOptions, import_folder
from topwork_trainer.cli.commands import cli
from topwork_trainer.data import scan
from topwork_trainer.fit.fit import FitConfig, FitResult, fit

RECIPE = Recipe(head="logistic", normalisation="sqrt_l2")
FOUR = [*TOPICS][:4]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of 15 texts of each of four topics."""
    for label in FOUR:
        (tmp_path / "data" / label).mkdir(parents=True)
        for number, text in enumerate(texts.texts(label, 15)):
            (tmp_path / "data" / label / f"{number:02}.txt").write_text(text)
    return tmp_path / "data"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a repository with the text encoder ``words``."""
    folder = text_encoders.folder(tmp_path / "encoder", text_encoders.encoder())
    made = import_folder("words", folder, FolderOptions(max_tokens=32))
    repository = Repository(tmp_path / "repository")
    repository.put_backbone(made.onnx, made.info)
    repository.add_backbone("words", made.info.digest)
    return repository.root


def config(data: Path, root: Path, **settings: Any) -> FitConfig:
    """Return the settings of a fit."""
    settings = {"backbone": "words", "recipe": RECIPE, **settings}
    return FitConfig(data=data, model="topics", repository=root, **settings)


def run(settings: FitConfig) -> FitResult:
    """Run a fit without progress."""
    return fit(settings, lambda *_: None)


def command(*arguments: object) -> Any:
    """Run a command, and return its JSON."""
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_fit_gives_the_head_of_its_texts(data: Path, root: Path) -> None:
    """The head is that of the texts' embeddings, it serves, and its examples are texts."""
    result = run(config(data, root))
    repository = Repository(root)
    spec = result.backbone.preprocess
    assert isinstance(spec, TextSpec)
    session = open_session(repository.backbone_model(result.backbone.digest), output="embedding")
    sources = [
        ImageSource(name=f"{label}/{number}", label=label, read=text.encode)
        for label in FOUR
        for number, text in enumerate(texts.texts(label, 15))
    ]
    made, _skipped = embed(sources, session, spec, cores=1)
    assert made is not None
    assert learn(made, seed=0, recipe=RECIPE).metrics == result.metrics
    assert result.metrics.accuracy > 0.7  # by chance 0.25
    asked = [topwork.Text(text) for text in texts.texts("chess", 1) + texts.texts("music", 1)]
    found = topwork.open(root, "topics").predict(asked)
    assert found[1].predictions[0].label == "music"


def test_cached_rows_are_those_of_the_same_tokenizer(
    data: Path, root: Path, tmp_path: Path
) -> None:
    """A second fit finds its rows; the same network with shorter texts has others."""
    first = run(config(data, root, cache=tmp_path / "cache"))
    again = run(config(data, root, cache=tmp_path / "cache"))
    assert again.manifest.data_digest == first.manifest.data_digest
    short = import_folder("short", tmp_path / "encoder", FolderOptions(max_tokens=4))
    repository = Repository(root)
    repository.put_backbone(short.onnx, short.info)
    repository.add_backbone("short", short.info.digest)
    other = run(config(data, root, backbone="short", cache=tmp_path / "cache"))
    assert other.metrics.accuracy < first.metrics.accuracy


def test_int8_embeddings_depend_on_their_text_alone(data: Path, root: Path) -> None:
    """int8 goes through the gate, and a text has the same embedding in any company."""
    result = run(config(data, root, precision="int8"))
    assert result.backbone.precision == "int8"
    assert result.manifest.precision_gate is not None
    assert result.manifest.precision_gate.speed_ratio > 0
    repository, spec = Repository(root), result.backbone.preprocess
    assert isinstance(spec, TextSpec)
    session = open_session(repository.backbone_model(result.backbone.digest), output="embedding")
    sources = scan(data).train
    forwards, _ = embed(sources, session, spec, cores=4)
    alone = [session.run(prepare(source.read(), spec)[None])[0] for source in sources]
    assert forwards is not None
    rows = dict(zip(forwards.names, forwards.embeddings, strict=True))
    for source, row in zip(sources, alone, strict=True):
        if source.name in rows:
            np.testing.assert_array_equal(rows[source.name], row)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"backbone": "efficientnet_lite0"},
            "add one to the repository .*; the repository has wor",
        ),
        ({"image_size": 64}, "--image-size needs photos, and .*data has texts"),
        ({"views": 2}, "--views needs photos"),
        ({"space": "mine"}, "--space needs embeddings"),
        ({"kind": "image"}, "has 0 classes"),
    ],
)
def test_settings_of_other_kinds_are_refused(
    data: Path, root: Path, settings: dict[str, Any], message: str
) -> None:
    """Each error names the setting."""
    with pytest.raises(InvalidInput, match=message):
        run(config(data, root, **settings))


def test_backbone_of_another_kind_is_refused(root: Path, tmp_path: Path) -> None:
    """Photos do not go through a text encoder."""
    from support.pictures import picture

    for label in ("amber", "violet"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "photos" / label / f"{number}.jpg").write_bytes(picture(label, number))
    with pytest.raises(InvalidInput, match="'words' takes inputs of the kind 'text'") as raised:
        run(config(tmp_path / "photos", root))
    assert raised.value.reason == "INPUT_KIND"


def test_too_few_texts_are_named_as_texts(data: Path, root: Path) -> None:
    """A class whose texts cannot be used is an error with the counts."""
    for number in range(11):
        (data / "music" / f"{number:02}.txt").write_text("unheard words")
    with pytest.raises(InvalidInput, match=r"at least 5 usable texts .*'music' has 4"):
        run(config(data, root))


def test_audit_counts_tokens(data: Path, root: Path) -> None:
    """Long texts, unknown words, unusable texts and repeats are findings."""
    (data / "music" / "long.txt").write_text("the choir and the drum " * 10)
    (data / "music" / "odd.txt").write_text("choir of zzz yyy xxx")
    (data / "music" / "empty.txt").write_text("")
    (data / "music" / "again.txt").write_text(texts.texts("music", 1)[0])
    found = {
        each.kind: each
        for each in audit(
            AuditConfig(data=data, repository=root, backbone="words"), lambda *_: None
        ).findings
    }
    assert "1 of 62 texts have more than the 32 tokens" in found["cut_off"].message
    assert "music/long.txt has 52" in found["cut_off"].message
    assert found["cut_off"].severity == "note"
    assert "music/odd.txt has 60 %" in found["unknown_tokens"].message
    assert found["unreadable"].images == ("music/empty.txt",)
    assert "repeat others token by token" in found["exact_duplicate"].message


def test_commands_take_texts(data: Path, root: Path) -> None:
    """fit, rank, audit and backbones print the size in tokens."""
    place = ("--repository", root, "--no-cache")
    fitted = command("fit", data, "--model", "topics", "--backbone", "auto", *place)
    assert (fitted["backbone"], fitted["max_tokens"], fitted["image_size"]) == ("words", 32, None)
    ranked = command("rank", data, *place)
    assert (ranked["chosen"], ranked["backbones"][0]["width"]) == ("words", 16)
    assert ranked["backbones"][0]["milliseconds"] > 0
    audited = command("audit", data, "--backbone", "words", "--kind", "text", *place)
    assert audited["classes"] == dict.fromkeys(sorted(FOUR), 15)
    with pytest.raises(InvalidInput, match="texts need a backbone that takes them"):
        CliRunner().invoke(cli, ["rank", str(data)], catch_exceptions=False)


def test_texts_are_kept_if_asked(data: Path, root: Path) -> None:
    """The repository has each text, by its sha256."""
    run(config(data, root, keep_images=True))
    content = texts.texts("music", 1)[0].encode()
    assert Repository(root).image(sha256(content)) == content


def test_held_out_texts_are_judged(data: Path, root: Path, tmp_path: Path) -> None:
    """A table of texts may be the test set."""
    rows = [f'"{text}",{label}' for label in FOUR for text in texts.texts(label, 5, first=50)]
    (tmp_path / "test.csv").write_text("\n".join(["text,label", *rows]))
    (split,) = run(config(data, root, test=tmp_path / "test.csv")).held_out
    assert (split.split, split.images) == ("test.csv", 20)
    assert split.right >= 18
