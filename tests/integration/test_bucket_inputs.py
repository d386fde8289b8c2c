"""Photos, texts and embeddings of a bucket, classified with SeaweedFS, and answers in a bucket."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from support import object_stores, spaces, tiny
from support.object_stores import S3Server
from support.pictures import picture, pictures
from support.servers import Command

import topwork as package
from topwork import StreamResult
from topwork.batch import Classifier
from topwork.bundle.opening import open_repository
from topwork.bundle.store import Repository
from topwork.cli import bucket_inputs, image_rows, parquet_table
from topwork.cli.commands import cli
from topwork.cli.input_kinds import Item
from topwork.client.inputs import Content
from topwork.errors import InvalidInput

if TYPE_CHECKING:
    from support.buckets import Bucket

PHOTOS = {
    f"{label}/{number}.png": picture(label, 70 + number)
    for number, label in enumerate(["amber", "blue", "green"])
}


@pytest.fixture
def bucket(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Return three photos below a new prefix, for which this process has credentials."""
    for name, value in seaweedfs.environment().items():
        monkeypatch.setenv(name, value)
    from support.buckets import Bucket  # needs obstore, as the server does

    made = Bucket(seaweedfs.new_url())
    for name, content in PHOTOS.items():
        made.write(f"photos/{name}", content)
    return made


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with the model ``colours``."""
    return tiny.repository(tmp_path_factory.mktemp("bucket") / "repository")


def predict(repository: Repository, *arguments: str | Path, model: str = "colours") -> Result:
    """Run the command."""
    options = ["predict", "--repository", str(repository.root), model]
    return CliRunner().invoke(cli, [*options, *map(str, arguments)])


def test_rows_of_a_pattern_have_the_answers_of_files(
    bucket: Bucket, repository: Repository, tmp_path: Path
) -> None:
    """Names are URLs, sorted; the Parquet file lies in the bucket, and nothing beside it."""
    before = bucket.names()
    out = f"{bucket.url}/answers/part.parquet"
    done = predict(repository, f"{bucket.url}/photos/*/*.png", "--out", out)
    assert (done.exit_code, done.output) == (0, "")
    rows = pq.read_table(io.BytesIO(bucket.read("answers/part.parquet"))).to_pylist()
    for name, content in PHOTOS.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    assert predict(repository, tmp_path, "--out", tmp_path / "part.parquet").exit_code == 0
    expected = pq.read_table(tmp_path / "part.parquet").to_pylist()
    assert [row.pop("name") for row in rows] == [f"{bucket.url}/photos/{name}" for name in PHOTOS]
    for row in expected:
        del row["name"]
    assert rows == expected
    assert rows[0]["digest"] == hashlib.sha256(PHOTOS["amber/0.png"]).hexdigest()
    assert bucket.names() == sorted([*before, "answers/part.parquet"])


@pytest.mark.slow
def test_workers_open_a_model_in_a_bucket(
    bucket: Bucket, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spawned processes unpickle the URL of the repository, and so does `predict`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = f"{bucket.url}/models"
    labels = ("amber", "blue", "crimson", "green")
    exemplars = tiny.embed_pictures({label: pictures(label, 20) for label in labels})
    tiny.publish(open_repository(url), "colours", exemplars)
    classify = Classifier(url, "colours")
    items = [*PHOTOS.values()]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found: list[Any] = pool.map(classify, [items[:2], items[2:]])
    expected = Classifier(repository.root, "colours")(items)
    assert [row for rows in found for row in rows] == expected
    options = ["predict", "--repository", url, "colours", f"{bucket.url}/photos", "--json"]
    done = CliRunner().invoke(cli, options)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["predictions"][0]["label"] for row in rows] == ["amber", "blue", "green"]


def test_server_classifies_objects(bucket: Bucket, topwork: Command) -> None:
    """`topwork classify` reads objects, and names them by their URLs."""
    status, output, errors = topwork(
        "classify", "--model", "colours", f"{bucket.url}/photos/**/*.png", "--json"
    )
    assert (status, errors) == (0, "")
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["image"] for row in rows] == [f"{bucket.url}/photos/{name}" for name in PHOTOS]
    assert [row["predictions"][0]["label"] for row in rows] == ["amber", "blue", "green"]


def test_folder_leaves_out_what_local_folders_do(bucket: Bucket, repository: Repository) -> None:
    """Texts, hidden objects and videos beside their photos; unreadable photos are rows."""
    others = ("README.txt", ".hidden/a.png", "blue/1.mov", "blue/.DS_Store", "__MACOSX/b.png")
    for name in others:
        bucket.write(f"photos/{name}", b"x")
    bucket.write("photos/broken.jpg", b"nothing")
    bucket.write("photos/odd names/a b#é%20[1]+.png", PHOTOS["blue/1.png"])
    done = predict(repository, f"{bucket.url}/photos", "--json")
    *rows, last = map(json.loads, done.stdout.splitlines())
    labels = {
        row["image"].removeprefix(f"{bucket.url}/photos/"): row["predictions"][0]["label"]
        for row in rows
        if row["error"] is None
    }
    assert labels == {
        "amber/0.png": "amber",
        "blue/1.png": "blue",
        "green/2.png": "green",
        "odd names/a b#é%20[1]+.png": "blue",
    }
    assert ["has an unknown format" in row["error"] for row in rows if row["error"]] == [True]
    left_out = {name for group in last["left_out"] for name in group["names"]}
    assert left_out == {f"{bucket.url}/photos/{name}" for name in others}
    assert done.exit_code == 1
    assert f"left out: 1 text file ({bucket.url}/photos/README.txt)" in done.stderr


def test_texts_and_embeddings_of_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    """Their kind is told as that of files; two kinds are refused."""
    points = spaces.repository(tmp_path / "repository")
    content = io.BytesIO()
    np.save(content, spaces.rows("a", 3, first=60))
    bucket.write("rows/1.npy", content.getvalue())
    url = f"{bucket.url}/rows/*.npy"
    done = predict(points, url, "--json", model="points")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["image"] for row in rows] == [f"{bucket.url}/rows/1.npy[{n}]" for n in range(3)]
    assert [row["predictions"][0]["label"] for row in rows] == ["a"] * 3
    bucket.write("texts/1.txt", b"one")
    with pytest.raises(InvalidInput, match=r"texts has texts and .*1\.npy has embeddings"):
        image_rows.given_inputs([f"{bucket.url}/texts", f"{bucket.url}/rows/1.npy"], [])
    found = image_rows.given_inputs([f"{bucket.url}/texts"], ["given"])
    assert [(name, read()) for name, read in found.items] == [
        ("--text 1", package.Text("given")),
        (f"{bucket.url}/texts/1.txt", package.Text("one")),
    ]


def test_objects_are_read_once_in_turn(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not more than AHEAD are read before the first answer, and each once."""
    from topwork.storage.bucket.objects import Objects

    count = image_rows.AHEAD * 3
    for number in range(count):
        bucket.write(f"many/{number:03}.png", b"%d" % number)
    requested: list[str] = []
    get = Objects.get

    def counted(self: Objects, name: str, **options: Any) -> Any:
        requested.append(name)
        return get(self, name, **options)

    monkeypatch.setattr(Objects, "get", counted)
    inputs = image_rows.given_inputs([f"{bucket.url}/many/*.png"], [])
    assert not requested
    begun: list[str] = []
    answered_at: list[int] = []

    def items() -> Iterator[Any]:
        for item in inputs.items:
            begun.append(item[0])
            yield item

    def classify(contents: Iterator[Content]) -> Generator[StreamResult, None, None]:
        for number, content in enumerate(contents):
            assert content == b"%d" % number
            answered_at.append(len(begun))
            yield StreamResult(revision=1, result=None)  # type: ignore[arg-type]  # not looked at

    noted = cast("Sequence[Item]", items())
    answers = image_rows.answered(noted, lambda item: item[1](), classify)
    assert [name for (name, _), _ in answers] == [name for name, _ in inputs.items]
    assert all(at <= number + image_rows.AHEAD for number, at in enumerate(answered_at))
    assert len(requested) == len({*requested}) == count


def test_object_that_is_gone_is_an_error_of_its_row(
    bucket: Bucket, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rows are not affected."""
    listed = bucket_inputs.list_objects

    def deleted(url: str, *, field: str) -> Any:
        found = listed(url, field=field)
        bucket.delete("photos/amber/0.png")
        return found

    monkeypatch.setattr(image_rows, "list_objects", deleted)
    done = predict(repository, f"{bucket.url}/photos/*/*.png", "--json")
    errors = [json.loads(line)["error"] for line in done.stdout.splitlines()]
    assert errors == ["the object cannot be read: it does not exist", None, None]
    assert done.exit_code == 1


def test_failed_run_leaves_the_former_object(
    bucket: Bucket, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is replaced when all rows are written; no other object stays."""
    bucket.write("part.parquet", b"former")
    before = bucket.names()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet_table, "_row", fail)
    for name in ("part.parquet", "new.parquet"):
        done = predict(repository, f"{bucket.url}/photos", "--out", f"{bucket.url}/{name}")
        assert isinstance(done.exception, OSError)
    assert bucket.names() == before
    assert bucket.read("part.parquet") == b"former"


@pytest.mark.parametrize(
    ("images", "out", "environment", "sentence"),
    [
        ("s3://wrong/*.png", "", {}, "s3://wrong: the bucket does not exist"),
        ("{url}/photos/*.png", "", {}, "nothing matches the pattern {url}/photos/*.png"),
        ("{url}/none", "", {}, "there is no object, or folder, {url}/none"),
        (
            "{url}/photos",
            "",
            {"AWS_ACCESS_KEY_ID": "nobody"},
            "s3://bucket: no permission to read (HTTP 403)",
        ),
        (
            "{url}/photos",
            "",
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            "s3://bucket: no credentials were found",
        ),
        ("{url}/photos", "s3://wrong/part.parquet", {}, "s3://wrong: the bucket does not exist"),
        ("{url}/photos", "{url}/", {}, "{url}/ is a folder, not a file"),
        (
            "{url}/photos",
            "{url}/part.parquet",
            dict(object_stores.S3Server(0).environment(object_stores.READER)),
            "s3://bucket: no permission to write (AccessDenied)",
        ),
    ],
)
def test_each_mistake_is_one_sentence(
    bucket: Bucket,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    images: str,
    out: str,
    environment: dict[str, str | None],
    sentence: str,
) -> None:
    """Before any photo is classified; nothing is written."""
    monkeypatch.setattr(image_rows, "answered", None)
    monkeypatch.setattr(parquet_table, "answered", None)
    before = bucket.names()
    for name, value in environment.items():
        if name.endswith(("KEY", "ID")):
            monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    options = ["--out", out.format(url=bucket.url)] if out else []
    done = predict(repository, images.format(url=bucket.url), *options)
    assert isinstance(done.exception, InvalidInput), done.exception
    assert str(done.exception) == sentence.format(url=bucket.url)
    assert bucket.names() == before


def test_obstore_is_an_extra(
    bucket: Bucket, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, the message names what to install."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "topwork.bucket_objects", raising=False)
    monkeypatch.delattr(package, "bucket_objects", raising=False)
    done = predict(repository, f"{bucket.url}/photos")
    assert isinstance(done.exception, InvalidInput)
    assert "pip install 'topwork[s3]'" in str(done.exception)


def test_listing_of_several_pages_is_whole(bucket: Bucket) -> None:
    """A store lists at most 1,000 objects at a time."""
    names = [f"pages/{number % 7}/{number:04}.png" for number in range(1100)]
    for name in names:
        bucket.write(name, b"x")
    found = image_rows.given_inputs([f"{bucket.url}/pages/**/*.png"], [])
    assert [name for name, _ in found.items] == sorted(f"{bucket.url}/{name}" for name in names)
