"""Embedding runs: parts, resumption after kills, several processes, and fits on the parts."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from support import photo_sets, pictures, servers, tiny

from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput
from topwork_trainer.backbones import DEFAULT, BackboneChoice
from topwork_trainer.cli.commands import cli
from topwork_trainer.embedding.embed import EmbedConfig, EmbedResult, embed_photos
from topwork_trainer.embedding.photos import read_photos
from topwork_trainer.embedding.plan import read_plan
from topwork_trainer.embedding.run_files import open_run
from topwork_trainer.embedding.work import Run
from topwork_trainer.fit.fit import FitConfig, FitResult, fit

LABELS = ("amber", "blue", "green")


def stored_backbone(root: Path, model: bytes) -> Repository:
    """Return a repository that stores a backbone as the default one."""
    created = Repository(root)
    info = replace(tiny.backbone_info(model), identity=BackboneChoice(name=DEFAULT).identity())
    created.put_backbone(model, info)
    return created


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a repository that stores the tiny backbone as the default one."""
    return stored_backbone(tmp_path / "repository", tiny.backbone_model())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return training and test photos, with one of each oddity that a fit reports."""
    for split, count, start in (("train", 12, 0), ("test", 6, 200)):
        for label in LABELS:
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number, content in enumerate(pictures.pictures(label, count, start=start)):
                (folder / f"{number:02}.png").write_bytes(content)
    blue = tmp_path / "data" / "train" / "blue"
    (blue / "broken.jpg").write_bytes(b"nothing")
    shutil.copy(blue / "03.png", blue / "again.png")
    (blue / ".hidden.png").write_bytes(b"hidden")
    Image.new("L", (90, 30), 130).save(blue / "grey.png")
    return tmp_path / "data"


def run(repository: Repository, data: Path, out: Path, **settings: object) -> EmbedResult:
    """Embed the photos in parts of five."""
    config = EmbedConfig(data=data, out=out, repository=repository.root, part_photos=5)
    return embed_photos(replace(config, **settings), lambda _: lambda _: None)  # type: ignore[arg-type]  # test values


def fitted(repository: Repository, data: Path, **settings: object) -> FitResult:
    """Fit the model ``colours``."""
    config = FitConfig(data=data, model="colours", repository=repository.root)
    return fit(replace(config, **settings), lambda *_: None)  # type: ignore[arg-type]  # test values


def parts(out: Path) -> dict[str, bytes]:
    """Return the content of all parts by name."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


def assert_same_revision(
    photos: FitResult, embedded: FitResult, of_photos: Repository, of_parts: Repository
) -> None:
    """Assert that all files of two revisions are equal, but the report's command and times."""
    left, right = photos.manifest, embedded.manifest
    same = {"created": left.created, "report": left.report}
    assert replace(right, **same) == left  # type: ignore[arg-type]  # fields of Manifest
    for name in ("head.onnx", "metrics.json", "examples.npz"):
        directories = [Path(result.report).parent for result in (photos, embedded)]
        assert (directories[0] / name).read_bytes() == (directories[1] / name).read_bytes()
    for each in left.exemplars:
        files = [(repo.root / repo.key("exemplars", each.digest)) for repo in (of_photos, of_parts)]
        assert files[0].read_bytes() == files[1].read_bytes()
    pages = [Path(each.report).read_text() for each in (photos, embedded)]
    reports = [re.sub(r"\d{4}-\d\d-\d\d[^<]*", "", page) for page in pages]
    assert reports[0] == reports[1]
    assert embedded.findings == photos.findings
    assert embedded.held_out == photos.held_out
    assert embedded.skipped == photos.skipped
    assert embedded.left_out == photos.left_out
    assert embedded.notes == photos.notes


def test_fit_on_parts_gives_the_revision_of_a_fit_on_photos(
    repository: Repository, data: Path, tmp_path: Path
) -> None:
    """Every file, finding and judged split is equal, after the photos are gone."""
    of_photos = fitted(repository, data)
    out = tmp_path / "out"
    assert run(repository, data, out).embedded_now == 3 * 12 + 3 * 6 + 3
    shutil.rmtree(data)
    other = Repository(tmp_path / "other")
    of_parts = fitted(other, out / "*.parquet", embedded=True)
    assert_same_revision(of_photos, of_parts, repository, other)
    kinds = {finding.kind for finding in of_parts.findings}
    assert {"unreadable", "exact_duplicate", "hidden", "greyscale", "elongated"} <= kinds


def test_groups_of_a_manifest_reach_the_fit_without_their_names(
    repository: Repository, data: Path, tmp_path: Path
) -> None:
    """Folds keep groups together as in a fit on the photos; no part has the name of a patient."""
    train = data / "train"
    rows = [
        (str(file.relative_to(train)), file.parent.name, f"Patient {number % 4}")
        for number, file in enumerate(sorted(train.glob("*/[01]*.png")))
    ]
    (train / "photos.csv").write_text(photo_sets.csv(rows, "path,label,group"))
    of_photos = fitted(repository, train / "photos.csv")
    run(repository, train / "photos.csv", tmp_path / "out")
    other = Repository(tmp_path / "other")
    of_parts = fitted(other, tmp_path / "out", embedded=True)
    assert_same_revision(of_photos, of_parts, repository, other)
    assert other.exemplars(of_parts.manifest.exemplars).count_groups() == 4
    assert not any(b"Patient" in content for content in parts(tmp_path / "out").values())


def test_parts_have_the_columns_that_are_documented(
    repository: Repository, data: Path, tmp_path: Path
) -> None:
    """A row per photo, also for those that cannot be read, in the order of the data."""
    run(repository, data, tmp_path / "out")
    table = pq.read_table(sorted((tmp_path / "out").glob("*.parquet")))
    rows = table.to_pylist()
    assert len({(row["split"], row["name"]) for row in rows}) == len(rows) == 57
    broken = next(row for row in rows if row["name"] == "train/blue/broken.jpg")
    assert (broken["reason"], broken["embedding"]) == ("IMAGE_UNREADABLE", None)
    good = next(row for row in rows if row["name"] == "train/blue/03.png")
    expected = tiny.embed_pictures({"blue": [(data / "train/blue/03.png").read_bytes()]})
    assert np.array(good["embedding"], dtype=np.float32).tobytes() == (
        expected.embeddings[0].tobytes()
    )
    assert good["digest"] == expected.digests[0].tobytes()
    assert good["content"] == expected.contents[0].tobytes()
    assert good["fingerprint"] == expected.fingerprints[0].tobytes()
    assert good["thumbnail"] == expected.thumbnails[0]


def test_model_lends_its_backbone(tmp_path: Path, data: Path) -> None:
    """``model`` embeds with the backbone of the serving revision."""
    repository = tiny.repository(tmp_path / "repository")
    result = run(repository, data, tmp_path / "out", model="colours")
    assert result.backbone.digest == repository.manifest("colours", 1).backbone
    assert read_photos(str(tmp_path / "out")).photos.labels == LABELS


def test_backbone_that_is_off_here_is_replaced_by_its_twin(tmp_path: Path, data: Path) -> None:
    """Its fp32 twin embeds, as in serving, and both reach the repository of the fit."""
    repository = tiny.saturating_repository(tmp_path / "repository")
    result = run(repository, data, tmp_path / "out", model="colours")
    other = Repository(tmp_path / "other")
    published = fitted(other, tmp_path / "out", embedded=True).manifest
    assert published.backbone == result.backbone.digest
    assert {info.digest for info in other.backbones()} == {published.backbone, result.backbone.twin}
    exemplars = other.exemplars(published.exemplars)
    blue = (data / "train/blue/03.png").read_bytes()
    expected = tiny.embed_pictures({"blue": [blue]})
    row = [digest.tobytes() for digest in exemplars.digests].index(expected.digests[0].tobytes())
    assert exemplars.embeddings[row].tobytes() == expected.embeddings[0].tobytes()


def test_photos_in_an_archive_give_the_same_revision(
    repository: Repository, data: Path, tmp_path: Path
) -> None:
    """The local engine reads a zip in place; suspects can be dropped without the photos."""
    archive = photo_sets.zipped(tmp_path / "photos.zip", data)
    of_photos = fitted(repository, archive, drop_suspects=True)
    run(repository, archive, tmp_path / "out")
    archive.unlink()
    other = Repository(tmp_path / "other")
    of_parts = fitted(other, tmp_path / "out", embedded=True, drop_suspects=True)
    assert_same_revision(of_photos, of_parts, repository, other)


def test_run_that_is_complete_embeds_nothing(
    repository: Repository, data: Path, tmp_path: Path
) -> None:
    """A second run leaves all files as they are, whatever size of parts it asks for."""
    run(repository, data, tmp_path / "out")
    before = parts(tmp_path / "out")
    assert run(repository, data, tmp_path / "out", part_photos=7).embedded_now == 0
    assert parts(tmp_path / "out") == before


def test_damaged_part_is_made_again(repository: Repository, data: Path, tmp_path: Path) -> None:
    """A part that is cut off, empty or of another number is not taken for a whole one."""
    out = tmp_path / "out"
    run(repository, data, out)
    before = parts(out)
    (out / "part-00001.parquet").write_bytes(before["part-00001.parquet"][:-10])
    (out / "part-00002.parquet").write_bytes(b"")
    shutil.copy(out / "part-00005.parquet", out / "part-00004.parquet")
    with pytest.raises(Corrupt, match=r"part-00001\.parquet cannot be read"):
        read_photos(str(out))
    assert run(repository, data, out).embedded_now == 15
    assert parts(out) == before


def test_directory_of_another_run_is_refused(
    repository: Repository, data: Path, tmp_path: Path
) -> None:
    """Other photos, thumbnails and software are named; the parts stay."""
    out = tmp_path / "out"
    run(repository, data, out)
    before = parts(out)
    with pytest.raises(InvalidInput, match="thumbnails of another size"):
        run(repository, data, out, preview_pixels=160)
    (data / "train/blue/03.png").unlink()
    with pytest.raises(InvalidInput, match="out has parts of other photos"):
        run(repository, data, out)
    plan = read_plan(open_run(out))
    with pytest.raises(InvalidInput, match="all processes need the same"):
        Run.open(open_run(out), replace(plan, versions={**plan.versions, "pillow": "1.0"}), cores=1)
    assert parts(out) == before


def test_fit_refuses_incomplete_parts(repository: Repository, data: Path, tmp_path: Path) -> None:
    """A part that is missing is named, and a pattern without parts, too."""
    out = tmp_path / "out"
    run(repository, data, out)
    (out / "part-00003.parquet").unlink()
    with pytest.raises(
        InvalidInput, match=r"1 of 12 parts are missing in .*out, such as part-00003"
    ):
        fitted(repository, out, embedded=True)
    with pytest.raises(InvalidInput, match="has the parts of 0 embedding runs"):
        fitted(repository, tmp_path / "*.parquet", embedded=True)
    with pytest.raises(InvalidInput, match=r"repository has no plan\.json"):
        fitted(repository, repository.root, embedded=True)


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"keep_images": True}, "--keep-images"),
        ({"classes": ["blue"]}, "--classes"),
        ({"precision": "int8"}, "--precision"),
        ({"preview_pixels": 160}, "--preview-pixels"),
        ({"backbone": "resnet50"}, "--backbone"),
    ],
)
def test_fit_on_parts_refuses_settings_that_need_photos(
    repository: Repository, settings: dict[str, object], option: str
) -> None:
    """The message names the option."""
    with pytest.raises(InvalidInput, match=f"{option} cannot be given with --embeddings"):
        fitted(repository, Path("out"), embedded=True, **settings)


def test_part_that_another_process_embeds_is_left_to_it(
    repository: Repository, data: Path, tmp_path: Path
) -> None:
    """A lock of another process is respected, and ends with that process."""
    out = tmp_path / "out"
    run(repository, data, out)
    (out / "part-00001.parquet").unlink()
    opened = Run.open(open_run(out), read_plan(open_run(out)), cores=1)
    holder = (
        "import fcntl, sys\n"
        f"file = open({str(out / 'plan.lock')!r}, 'r+')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX, 1, 1)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        assert opened.embed(1, [], wait=False) is None
        process.kill()
        process.wait()
    assert run(repository, data, out).embedded_now == 5


STORED = {
    "data": "ab" * 32,
    "photos": 5,
    "part_photos": 2,
    "backbone": "cd" * 32,
    "preview_pixels": 64,
    "versions": {"onnxruntime": "1.23.2", "pillow": "12.0.0"},
    "labels": ["a", "b"],
    "splits": ["test"],
    "left_out": [{"reason": "text", "names": ["a/notes.txt"]}],
    "notes": ["Held out and not trained on: test (1 photos)"],
    "schema": 1,
}
"""Content of plan.json of the first release, whose parts have the sha256 of its bytes."""


def test_plan_of_the_first_release_is_read(tmp_path: Path) -> None:
    """Reading and writing it gives the same bytes, which the parts name by their digest."""
    content = json.dumps(STORED, indent=1).encode() + b"\n"
    (tmp_path / "plan.json").write_bytes(content)
    plan = read_plan(open_run(tmp_path))
    assert plan.parts == 3
    assert plan.digest == hashlib.sha256(content).hexdigest()
    (tmp_path / "plan.json").write_text(json.dumps({**STORED, "schema": 2}))
    with pytest.raises(InvalidInput, match="has schema 2; this software reads 1"):
        read_plan(open_run(tmp_path))


# Processes


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with a model whose backbone takes a while for each image."""
    root = tmp_path_factory.mktemp("slow") / "repository"
    return stored_backbone(root, tiny.busy_backbone_model())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 24 photos of two labels."""
    root = tmp_path_factory.mktemp("photos")
    for label in LABELS[:2]:
        (root / label).mkdir()
        for number, content in enumerate(pictures.pictures(label, 12)):
            (root / label / f"{number:02}.png").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def whole(slow: Repository, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the parts of a run that nobody killed."""
    out = tmp_path_factory.mktemp("whole")
    run(slow, photos, out, part_photos=3)
    return out


def start(slow: Repository, photos: Path, out: Path) -> subprocess.Popen[str]:
    """Start the command in a process."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "topwork_trainer", "embed", photos, "--out", out, "--json"),
            *("--repository", slow.root, "--part-photos", "3"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def moments(seed: int) -> Iterator[int]:
    """Yield numbers of parts after which to kill, from before the first to the last."""
    yield from sorted(random.Random(seed).sample(range(8), 4))


@pytest.mark.slow
def test_run_that_is_killed_again_and_again_gives_the_same_bytes(
    slow: Repository, photos: Path, whole: Path, tmp_path: Path
) -> None:
    """SIGKILL at any moment loses no part, leaves none half written, and the end is the same."""
    out = tmp_path / "out"
    expected = parts(whole)
    for count in moments(19):
        with start(slow, photos, out) as process:
            servers.eventually(lambda count=count: len(parts(out)) >= count)  # type: ignore[misc]  # mypy cannot infer a lambda's default
            process.kill()
        done = parts(out)
        assert len(done) >= count
        assert done.items() <= expected.items()
    result = run(slow, photos, out)
    assert result.embedded_now == 24 - 3 * len(done)
    assert parts(out) == expected


@pytest.mark.slow
def test_processes_side_by_side_embed_each_photo_once(
    slow: Repository, photos: Path, whole: Path, tmp_path: Path
) -> None:
    """Two processes share the parts of one run, and their bytes are those of one process."""
    out = tmp_path / "out"
    both = [start(slow, photos, out) for _ in range(2)]
    counts = [json.loads(process.communicate()[0])["embedded_now"] for process in both]
    assert sum(counts) == 24
    assert all(counts), "one process has embedded all photos"
    assert parts(out) == parts(whole)


# Commands


def test_commands_embed_and_fit(repository: Repository, data: Path, tmp_path: Path) -> None:
    """``embed`` prints its counts; ``fit --embeddings`` takes the pattern of the parts."""
    out, root = str(tmp_path / "out"), str(repository.root)
    done = CliRunner().invoke(cli, ["embed", str(data), "--out", out, "--repository", root])
    assert done.exit_code == 0, done.output
    assert "57 photos in 1 parts in" in done.output
    options = ["--model", "colours", "--repository", root, "--json"]
    done = CliRunner().invoke(cli, ["fit", "--embeddings", f"{out}/*.parquet", *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["revision"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--model", "m", "--repository", "r"], "give DATA or --embeddings"),
        (
            ["fit", ".", "--embeddings", "x", "--model", "m", "--repository", "r"],
            "give DATA or --embeddings",
        ),
        (["embed", ".", "--out", "o", "--model", "m", "--backbone", "b"], "not both"),
    ],
)
def test_commands_refuse_arguments_that_exclude_each_other(
    arguments: list[str], message: str
) -> None:
    """The message says which."""
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code != 0
    assert message in done.output + str(done.exception)
