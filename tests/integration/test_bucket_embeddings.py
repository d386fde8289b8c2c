"""Embedding runs in a bucket, with SeaweedFS, and fits on them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from support import pictures, servers, tiny
from support.object_stores import S3Server

from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput
from topwork_trainer.backbones import DEFAULT, BackboneChoice
from topwork_trainer.cli.commands import cli
from topwork_trainer.embedding.embed import EmbedConfig, EmbedResult, embed_photos
from topwork_trainer.embedding.ray_engine import embed_part
from topwork_trainer.embedding.run_files import RunBucket
from topwork_trainer.fit.fit import FitConfig, FitResult, fit

if TYPE_CHECKING:
    from support.buckets import Bucket

LABELS = ("amber", "blue", "green")
COUNT = 24
PARTS = [f"part-{number:05}.parquet" for number in range(8)]


@pytest.fixture
def bucket(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Return a new prefix, for which this process has credentials."""
    from support.buckets import Bucket  # needs obstore, as the server does

    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    return Bucket(seaweedfs.new_url())


def stored_backbone(root: Path, model: bytes) -> Repository:
    """Return a repository that stores a backbone as the default one."""
    created = Repository(root)
    info = replace(tiny.backbone_info(model), identity=BackboneChoice(name=DEFAULT).identity())
    created.put_backbone(model, info)
    return created


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository that stores the tiny backbone as the default one."""
    return stored_backbone(tmp_path_factory.mktemp("run") / "repository", tiny.backbone_model())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 24 photos of three labels."""
    root = tmp_path_factory.mktemp("photos")
    for label in LABELS:
        (root / label).mkdir()
        for number, content in enumerate(pictures.pictures(label, 8)):
            (root / label / f"{number:02}.png").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def local(repository: Repository, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same run in a directory."""
    out = tmp_path_factory.mktemp("local")
    run(repository, photos, out)
    return out


def run(repository: Repository, data: Path, out: Path | str, **settings: object) -> EmbedResult:
    """Embed the photos in parts of three."""
    config = EmbedConfig(data=data, out=out, repository=repository.root, part_photos=3)
    return embed_photos(replace(config, **settings), lambda _: lambda _: None)  # type: ignore[arg-type]  # test values


def fitted(root: Path, data: Path | str) -> FitResult:
    """Fit the model ``colours`` on a run."""
    config = FitConfig(data=data, model="colours", repository=root, embedded=True)
    return fit(config, lambda *_: None)


def parts(bucket: Bucket) -> dict[str, bytes]:
    """Return the content of all parts by name."""
    return {name: bucket.read(name) for name in bucket.names() if name.endswith(".parquet")}


def test_parts_and_fit_are_those_of_a_directory(
    bucket: Bucket, repository: Repository, photos: Path, local: Path, tmp_path: Path
) -> None:
    """All objects are the files of a local run, byte for byte, and so is the revision's head."""
    assert run(repository, photos, bucket.url).embedded_now == COUNT
    files = {str(path.relative_to(local)) for path in local.rglob("*.*") if path.is_file()}
    assert {*bucket.names()} == files - {".lock", "begin.lock", "plan.lock"}
    assert all(bucket.read(name) == (local / name).read_bytes() for name in bucket.names())
    of_local, of_bucket = (
        fitted(tmp_path / name, data)
        for name, data in (("a", local / "*.parquet"), ("b", f"{bucket.url}/*.parquet"))
    )
    assert of_bucket.manifest.head == of_local.manifest.head
    assert of_bucket.manifest.data_digest == of_local.manifest.data_digest
    assert of_bucket.metrics == of_local.metrics
    assert fitted(tmp_path / "c", bucket.url).manifest.revision == 1


def test_run_that_was_copied_into_a_bucket_is_read(
    bucket: Bucket, local: Path, tmp_path: Path
) -> None:
    """The layout is the directory's, so that any tool can copy it; other objects do not matter."""
    for path in local.rglob("*.*"):
        if path.is_file():
            bucket.write(f"copied/{path.relative_to(local)}", path.read_bytes())
    bucket.write("copied/backbones/notes.txt", b"nothing")
    result = fitted(tmp_path / "repository", f"{bucket.url}/copied/*.parquet")
    assert result.manifest.labels == LABELS


def test_run_resumes(bucket: Bucket, repository: Repository, photos: Path, local: Path) -> None:
    """Only missing parts are made; the plan and what was there stay."""
    run(repository, photos, bucket.url)
    assert run(repository, photos, bucket.url).embedded_now == 0
    for name in (PARTS[0], PARTS[5]):
        bucket.delete(name)
    assert run(repository, photos, bucket.url, part_photos=7).embedded_now == 6
    assert parts(bucket) == {path.name: path.read_bytes() for path in local.glob("*.parquet")}


def test_processes_side_by_side_store_each_photo_once(
    bucket: Bucket,
    repository: Repository,
    photos: Path,
    local: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs that embed the same parts at the same time count each photo once, and agree."""
    monkeypatch.setattr(random, "shuffle", lambda _: None)  # the same order in all
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(run, repository, photos, bucket.url) for _ in range(3)]
        assert sum(each.result().embedded_now for each in runs) == COUNT
    assert parts(bucket) == {path.name: path.read_bytes() for path in local.glob("*.parquet")}


def test_second_writer_of_a_part_loses(bucket: Bucket) -> None:
    """What is stored is never replaced."""
    files = RunBucket(bucket.url)
    assert files.write(PARTS[0], b"first")
    assert not files.write(PARTS[0], b"second")
    assert files.read(PARTS[0]) == b"first"
    assert files.stored(PARTS[:1]) == files.stored(PARTS) == {PARTS[0]}
    assert files.read("none") is None


def test_task_of_an_engine_opens_the_run_by_its_url(
    bucket: Bucket, repository: Repository, photos: Path, local: Path
) -> None:
    """A worker on another machine needs only the URL and its photos."""
    from topwork_trainer.data import scan
    from topwork_trainer.embedding.plan import listed

    result = run(repository, photos, bucket.url)
    bucket.delete(PARTS[2])
    own = result.plan.photos_of(2, listed(scan(photos)))
    assert embed_part(bucket.url, result.plan.digest, 2, own) == 3
    assert bucket.read(PARTS[2]) == (local / PARTS[2]).read_bytes()


@pytest.mark.slow
def test_kill_loses_no_part(bucket: Bucket, photos: Path, tmp_path: Path) -> None:
    """After SIGKILL there are whole parts only, and the command goes on."""
    slow = stored_backbone(tmp_path / "slow", tiny.busy_backbone_model())
    command = [sys.executable, "-m", "topwork_trainer", "embed", str(photos), "--out", bucket.url]
    options = ["--repository", str(slow.root), "--part-photos", "3", "--json"]
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL) as process:
        servers.eventually(lambda: len(parts(bucket)) >= 2)
        process.kill()
    done = parts(bucket)
    finished = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    facts = json.loads(finished.stdout)
    assert facts["out"] == bucket.url
    assert facts["embedded_now"] == COUNT - 3 * len(done)
    assert done.items() <= parts(bucket).items()
    run(slow, photos, tmp_path / "local")
    assert parts(bucket) == {
        path.name: path.read_bytes() for path in (tmp_path / "local").glob("*.parquet")
    }


def test_mistakes_are_named(
    bucket: Bucket, repository: Repository, photos: Path, tmp_path: Path
) -> None:
    """Missing parts, damaged ones, another run's plan, no plan, and the wrong bucket."""
    run(repository, photos, bucket.url)
    with pytest.raises(InvalidInput, match="has parts of thumbnails of another size"):
        run(repository, photos, bucket.url, preview_pixels=160)
    root = tmp_path / "repository"

    def refused(data: str, kind: type[Exception] = InvalidInput) -> str:
        with pytest.raises(kind) as caught:
            fitted(root, data)
        return str(caught.value)

    pattern = f"{bucket.url}/*.parquet"
    bucket.write(PARTS[1], b"damaged")
    assert f"{bucket.url}/{PARTS[1]} cannot be read" in refused(pattern, Corrupt)
    bucket.delete(PARTS[1])
    assert f"1 of 8 parts are missing in {bucket.url}, such as {PARTS[1]}" in refused(pattern)
    bucket.delete("plan.json")
    assert f"{bucket.url} has no plan.json" in refused(pattern)
    assert "nothing matches the pattern" in refused(f"{bucket.url}/none/*.parquet")
    assert "has the parts of 2 embedding runs" in refused(two_runs(bucket))
    assert refused("s3://wrong/*.parquet") == "s3://wrong: the bucket does not exist"


def test_run_in_a_wrong_bucket_is_refused(
    moto: S3Server, repository: Repository, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SeaweedFS creates a bucket at the first object; S3 and moto refuse."""
    for name, value in moto.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match="s3://wrong: the bucket does not exist"):
        run(repository, photos, "s3://wrong/run")
    assert run(repository, photos, moto.new_url()).embedded_now == COUNT


def two_runs(bucket: Bucket) -> str:
    """Return a pattern that matches parts in two folders."""
    for name in ("a", "b"):
        bucket.write(f"{name}/{PARTS[0]}", b"part")
    return f"{bucket.url}/[ab]/*.parquet"


def test_commands_take_urls(
    bucket: Bucket, repository: Repository, photos: Path, tmp_path: Path
) -> None:
    """``embed --out`` and ``fit --embeddings``; other URLs than those of buckets are refused."""
    done = CliRunner().invoke(
        cli, ["embed", str(photos), "--out", bucket.url, "--repository", str(repository.root)]
    )
    assert done.exit_code == 0, done.output
    assert f"24 photos in 1 parts in {bucket.url}" in done.output
    root = str(tmp_path / "repository")
    options = ["--model", "colours", "--repository", root, "--json"]
    done = CliRunner().invoke(cli, ["fit", "--embeddings", f"{bucket.url}/*.parquet", *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["revision"] == 1
    done = CliRunner().invoke(cli, ["embed", str(photos), "--out", "https://host/run"])
    assert "'https://host/run' is a URL, not a file or folder" in done.output
