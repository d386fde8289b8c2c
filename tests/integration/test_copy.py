"""``topwork copy-repository``: repositories from directories to buckets and back, byte for byte."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import filled, golden, servers, signed, stored, tiny
from support.object_stores import S3Server
from support.pictures import pictures

from topwork import Client
from topwork.bundle.candidates import CandidateStore
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.copying import Copied, copy
from topwork.bundle.manifest import Manifest
from topwork.bundle.opening import open_repository
from topwork.bundle.signing import keys, revisions
from topwork.bundle.store import Repository
from topwork.cli.copy_repository import copy_repository as command
from topwork.errors import AlreadyExists, InvalidInput, NotFound
from topwork.local import open_model
from topwork.storage.bucket.objects import Objects
from topwork.storage.location import to_location

RELEASES = sorted(path.parent.name for path in golden.ROOT.glob("*/left.tar.xz"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a repository with a file of every kind, and of its key."""
    directory = tmp_path_factory.mktemp("made")
    filled.fill(directory / "repository", signed.new_key(directory))
    return directory


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Repository:
    """Return a copy of that repository, which the test may change."""
    shutil.copytree(made / "repository", tmp_path / "source")
    return Repository(tmp_path / "source")


@pytest.fixture(params=["directory", "memory", "seaweedfs"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the location of an empty repository of each kind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "directory":
        return str(tmp_path / "target")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    server: S3Server = request.getfixturevalue("seaweedfs")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server.new_url()


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of an empty bucket in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"memory://{uuid.uuid4().hex}"


def opened(location: str | Path, *, writes: bool = True) -> Repository:
    """Open the repository at a location."""
    return open_repository(to_location(location), writes=writes)


def errors(repository: Repository) -> list[str]:
    """Return the paths of the errors that fsck finds."""
    return [problem.path for problem in check(repository) if problem.severity == "error"]


def failed(copied: Copied) -> list[str]:
    """Return the paths of the errors of a copy."""
    return [problem.path for problem in copied.problems if problem.severity == "error"]


def answers(location: str | Path) -> list[dict[str, float]]:
    """Return the probabilities that the model ``colours`` has for pictures."""
    results = open_model(location, "colours", threads=1).predict(pictures("blue", 3, start=70))
    return [{each.label: each.probability for each in result.predictions} for result in results]


@dataclass
class Result:
    """Exit status and output of the command."""

    status: int
    out: str

    @property
    def json(self) -> Any:
        """The single object that --json prints."""
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Return a function that runs ``topwork copy-repository``."""

    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            command.main([str(argument) for argument in arguments])
        return Result(int(ended.value.code or 0), capsys.readouterr().out)

    return run


# Whole copies


def test_copy_there_and_back_is_byte_for_byte(
    source: Repository, made: Path, target: str, tmp_path: Path
) -> None:
    """Every file is the same in the target and in a copy of it, and answers and times are."""
    there = opened(target)
    first = copy(source, there)
    back = Repository(tmp_path / "back")
    second = copy(opened(target, writes=False), back)
    assert (failed(first), failed(second)) == ([], [])
    expected = filled.files(source.storage)
    assert filled.files(there.storage) == expected
    assert filled.files(back.storage) == expected
    assert len([key for key in expected if key.endswith(".npz") and "/review/" in key]) == 2
    assert (errors(there), errors(back)) == ([], [])
    assert answers(target) == answers(source.root) == answers(back.root)
    assert there.serving_state("colours") == source.serving_state("colours")
    assert there.is_draft("later")
    listings = [
        {name: entry.time_ns for name, entry in each.storage.files("models/colours/review").items()}
        for each in (source, there, back)
    ]
    assert [name for name in listings[0] if name.endswith(".gone")] != []
    for name, time_ns in listings[0].items():
        if name.endswith(".gone") or target.startswith("/"):
            assert listings[1][name] == listings[2][name] == time_ns
    verifying = signed.signing(None, made / "key", publishes=False)
    assert not any(each.problem for each in revisions.verify(back, verifying))
    assert open_repository(to_location(target), verifying).draft("later").labels == ("amber",)


def test_repeated_copy_writes_nothing(source: Repository, target: str) -> None:
    """What the target has is verified and counted as there already."""
    first = copy(source, opened(target))
    again = copy(source, opened(target))
    assert (sum(again.written.values()), again.size) == (0, 0)
    assert again.present == first.written
    assert again.serving == first.serving == {"colours": 2}


def test_deleted_models_are_left_out_and_named(source: Repository, target: str) -> None:
    """A deleted model is a note; nothing of it is in the target, not even its marker."""
    copied = copy(source, opened(target))
    assert [(each.severity, each.path) for each in copied.problems] == [
        ("note", "models/.deleted-gone")
    ]
    assert opened(target).deleted_models() == []


def test_damage_in_the_target_is_repaired(source: Repository, target: str) -> None:
    """A copy over damaged files of the target writes them again."""
    there = opened(target)
    copy(source, there)
    expected = filled.files(there.storage)
    shard = source.manifest("colours", 2).exemplars[0].digest
    image = min(source.stored("images"))
    backbone = source.manifest("colours", 2).backbone
    for key in (
        "models/colours/2/head.onnx",
        "models/colours/1/manifest.json",
        "models/colours/1/manifest.sig",
        "models/colours/evaluations/held-out/set.json",
        f"exemplars/{shard}.npz",
        f"images/{image}",
        f"backbones/{backbone}/backbone.onnx",
        f"backbones/{backbone}/backbone.json",
    ):
        there.storage.write(key, b"damaged")
    assert failed(copy(source, opened(target))) == []
    assert filled.files(opened(target).storage) == expected


# Interrupted copies


class Killed(BaseException):
    """The process ends here."""


def dying(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, after: int) -> Callable[[], int]:
    """Let a method die at all calls but the first ``after``; return the counter of its calls."""
    real, count = getattr(owner, name), 0

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, called)
    return lambda: count


@pytest.mark.parametrize("eighth", [0, 3, 6])
def test_copy_that_died_at_any_request_is_resumed(
    source: Repository, memory: str, monkeypatch: pytest.MonkeyPatch, eighth: int
) -> None:
    """Wherever a copy to a bucket dies, the target is sound, and the next copy completes it."""
    whole = opened(f"{memory}-whole")
    with monkeypatch.context() as patch:
        total = dying(patch, Objects, "put", 10**6)
        copy(source, whole)
    expected = filled.files(whole.storage)
    for after in range(eighth, total(), 8):
        url = f"{memory}-{after}"
        target = opened(url)
        with monkeypatch.context() as patch:
            dying(patch, Objects, "put", after)
            with pytest.raises(Killed):
                copy(source, target)
        assert errors(opened(url)) == []
        if "colours" in opened(url).models():
            assert answers(url) == answers(source.root)
        assert failed(copy(source, opened(url))) == []
        assert filled.files(opened(url).storage) == expected


@pytest.mark.parametrize(
    "place", ["exemplars", "images", "models/colours/2", "models/colours/serving.json"]
)
def test_killed_command_is_resumed(source: Repository, tmp_path: Path, place: str) -> None:
    """SIGKILL after the first write to a place leaves a repository that the next copy completes."""
    target = tmp_path / "target"
    script = (
        "import os, signal, sys\n"
        "from topwork.storage.file_storage import FileStorage\n"
        "def dying(real):\n"
        "    def called(self, key, *arguments, **options):\n"
        "        result = real(self, key, *arguments, **options)\n"
        f"        if key.startswith({place!r}): os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return result\n"
        "    return called\n"
        "for name in ('put_blob', 'create', 'write'):\n"
        "    setattr(FileStorage, name, dying(getattr(FileStorage, name)))\n"
        f"sys.argv = ['topwork', 'copy-repository', {str(source.root)!r}, {str(target)!r}]\n"
        "from topwork.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert errors(Repository(target)) == []
    assert failed(copy(source, Repository(target))) == []
    assert filled.files(Repository(target).storage) == filled.files(source.storage)


# Copies of a repository in use


def test_next_copy_moves_the_pointer_forward(source: Repository, target: str) -> None:
    """A later revision, a pin, a signature, labels of the queue and results follow."""
    copy(source, opened(target))
    tiny.publish_copy(source, source.manifest("colours", 2))
    source.set_serving("colours", 4, why="retrain", operation="op-4")
    source.pin("colours", 1, pinned=False)
    source.pin("colours", 2, pinned=True)
    store = CandidateStore(source, "colours")
    with store.writing():
        store.retire(filled.candidate(source, 1)[0].digest)
        store.put(*filled.candidate(source, 7))
    copied = copy(source, opened(target))
    assert copied.serving == {"colours": 4}
    assert (copied.written["revision"], copied.written["model"]) == (1, 1)
    assert filled.files(opened(target).storage) == filled.files(source.storage)


def test_revision_published_during_the_copy_comes_with_the_next(
    source: Repository, memory: str
) -> None:
    """A copy has what served when it began; a server may publish and move the pointer meanwhile."""
    published: list[Manifest] = []

    def publish(_done: int, _total: int) -> None:
        if not published:
            published.append(tiny.publish_copy(source, source.manifest("colours", 2)))
            source.set_serving("colours", 4, why="retrain")

    target = opened(memory)
    assert copy(source, target, on_progress=publish).serving == {"colours": 2}
    assert (target.revisions("colours"), errors(target)) == ([1, 2, 3], [])
    assert copy(source, target).serving == {"colours": 4}


@pytest.mark.parametrize("target", ["directory", "seaweedfs"], indirect=True)
def test_server_moves_to_the_target(source: Repository, target: str, tmp_path: Path) -> None:
    """Copies while a server learns a class are sound; after the last one it serves there."""
    violets = [(f"{number}.png", photo) for number, photo in enumerate(pictures("violet", 12))]
    photo = pictures("violet", 1, start=80)
    with servers.running(source.root) as server, Client(server.address) as client:
        client.add_class("colours", "violet", violets)
        served = set()
        while any(client.operations("done = false")):
            served.add(copy(source, opened(target)).serving["colours"])
            assert errors(opened(target)) == []
        servers.eventually(lambda: client.classify("colours", photo).revision == 4)
        answer = client.classify("colours", photo)
    assert copy(source, opened(target)).serving == {"colours": 4}
    assert served <= {2, 4}
    database = f"sqlite:///{tmp_path / 'operations.sqlite'}"
    with (
        servers.running(target, database=database, worker=False) as server,
        Client(server.address) as client,
    ):
        moved = client.classify("colours", photo)
        assert list(client.operations()) == []
    assert moved.revision == answer.revision == 4
    assert moved.results[0].predictions == answer.results[0].predictions


def test_blob_deleted_from_the_target_meanwhile_is_noticed(source: Repository, memory: str) -> None:
    """A revision is published only if all that it needs is there; the next copy completes it."""
    target = opened(memory)
    shard = source.manifest("colours", 2).exemplars[0].digest

    def delete(_done: int, _total: int) -> None:
        target.storage.delete(f"exemplars/{shard}.npz")

    copied = copy(source, target, on_progress=delete)
    assert "models/colours/2" in failed(copied)
    assert (target.revisions("colours"), errors(target)) == ([], [])
    assert failed(copy(source, target)) == []
    assert target.serving("colours") == 2


def test_command_holds_the_locks_of_the_database(
    source: Repository, target: str, tmp_path: Path, run: Callable[..., Result]
) -> None:
    """The writers of a bucket wait for each other with --database."""
    database = f"sqlite:///{tmp_path / 'operations.sqlite'}"
    assert run(source.root, target, "--database", database).status == 0
    assert filled.files(opened(target).storage) == filled.files(source.storage)


def test_signature_added_later_is_copied(
    source: Repository, memory: str, tmp_path: Path, made: Path
) -> None:
    """Signatures of the source are added to those that the target got of its own."""
    target = opened(memory)
    copy(source, target)
    ours, theirs = (signed.new_key(tmp_path, name) for name in ("ours", "theirs"))
    revisions.sign(source, "colours", 2, keys.read_signing_key(ours))
    revisions.sign(target, "colours", 2, keys.read_signing_key(theirs))
    copy(source, target)
    for key in (made / "key", ours, theirs):
        signing = signed.signing(None, key, publishes=False)
        assert open_repository(memory, signing).manifest("colours", 2).revision == 2


def test_expired_candidates_are_left_out(source: Repository, memory: str) -> None:
    """The copy would let them live longer, for a bucket has times of its own."""
    stored.grow_old(source)
    copy(source, opened(memory))
    assert opened(memory).storage.files("models/colours/review") == {}


# Conflicts


def _other_model(target: Repository) -> None:
    tiny.publish(
        target, "colours", tiny.embed_pictures({c: pictures(c, 9) for c in ("blue", "crimson")})
    )


def _moved(target: Repository) -> None:
    target.set_serving("colours", 3, why="rollback")


def _published(target: Repository) -> None:
    tiny.publish_copy(target, target.manifest("colours", 2))


def _deleted(target: Repository) -> None:
    target.delete_model("colours")


def _other_name(target: Repository) -> None:
    target.add_backbone("mine", stored.put_backbone(target))


def _other_draft(target: Repository) -> None:
    draft = target.draft("later")
    with target.locked("later"):
        target.set_draft(
            draft.changed(draft.exemplars, 12, "op-of-target"), before=target.draft(draft.model)
        )


@pytest.mark.parametrize(
    ("conflict", "copied"),
    [
        (_other_model, False),
        (_moved, True),
        (_published, True),
        (_deleted, True),
        (_other_name, False),
        (_other_draft, True),
    ],
)
def test_other_content_in_the_target_is_refused(
    source: Repository, target: str, conflict: Callable[[Repository], None], *, copied: bool
) -> None:
    """A target that has other content of a name is not written to at all."""
    there = opened(target)
    if copied:
        copy(source, there)
    conflict(there)
    before = filled.files(there.storage)
    for _ in range(2):
        with pytest.raises(AlreadyExists):
            copy(source, opened(target))
        tiny.publish_copy(source, source.manifest("colours", 2))
    assert filled.files(opened(target).storage) == before


def test_otherwise_described_backbone_is_refused(source: Repository, memory: str) -> None:
    """The manifests of the source name the sha256 of its own backbone.json."""
    target = opened(memory)
    model = tiny.backbone_model()
    info = tiny.backbone_info(model)
    other = type(info)(**{name: getattr(info, name) for name in info.__slots__} | {"source": "x"})
    target.put_backbone(model, other)
    with pytest.raises(AlreadyExists, match="describes the backbone"):
        copy(source, target)
    assert target.models() == []


def test_other_models_of_the_target_stay(source: Repository, target: str) -> None:
    """A copy adds its models to those that the target has."""
    there = opened(target)
    tiny.publish(
        there, "ours", tiny.embed_pictures({c: pictures(c, 9) for c in ("blue", "crimson")})
    )
    copy(source, there, models=["colours"])
    assert opened(target).models() == ["colours", "ours"]
    assert errors(opened(target)) == []


# Damage


def test_damaged_shard_keeps_only_its_model_from_serving(source: Repository, target: str) -> None:
    """What is damaged is named, with all that needs it; other models and revisions are copied."""
    other = tiny.embed_pictures({c: pictures(c, 9) for c in ("blue", "crimson")})
    tiny.publish(source, "other", other)
    shard = source.manifest("colours", 2).exemplars[0].digest
    source.storage.write(f"exemplars/{shard}.npz", b"damaged")
    copied = copy(source, opened(target))
    assert set(failed(copied)) == {
        f"exemplars/{shard}.npz",
        *(f"models/colours/{number}" for number in (1, 2, 3)),
        "models/colours/serving.json",
        "models/later/draft.json",
    }
    there = opened(target)
    assert there.models() == ["other"]
    assert (there.revisions("colours"), there.is_draft("colours"), errors(there)) == ([], False, [])
    assert there.storage.files("models/colours/evaluations/held-out") != {}


@pytest.mark.parametrize(
    "name", ["head.onnx", "metrics.json", "examples.npz", "manifest.json", "manifest.sig"]
)
def test_damaged_revision_is_left_out(source: Repository, memory: str, name: str) -> None:
    """A damaged file of a pinned revision leaves it out, with its pin; the other one serves."""
    source.storage.write(f"models/colours/1/{name}", b"damaged")
    copied = copy(source, opened(memory))
    assert [path.removesuffix("/manifest.json") for path in failed(copied)] == ["models/colours/1"]
    target = opened(memory)
    assert (target.revisions("colours"), errors(target)) == ([2, 3], [])
    assert target.serving_state("colours").pinned == ()
    assert target.serving("colours") == 2


@pytest.mark.parametrize(
    "key",
    [
        "models/colours/serving.json",
        "models/colours/review.json",
        "models/later/draft.json",
        "models/colours/evaluations/held-out/set.json",
        "models/colours/evaluations/held-out/2.json",
        "backbones/names.json",
    ],
)
def test_damaged_document_is_named(source: Repository, memory: str, key: str) -> None:
    """A damaged document is left out and named; the target is sound without it."""
    source.storage.write(key, b"{")
    assert failed(copy(source, opened(memory))) == [key]
    target = opened(memory)
    assert errors(target) == []
    assert key not in filled.files(target.storage)
    assert ("colours" in target.models()) == ("serving" not in key)


def test_damaged_images_and_candidates_are_named(source: Repository, memory: str) -> None:
    """They keep no model from serving: embeddings suffice."""
    image = min(source.stored("images"))
    kept = min(source.storage.files("models/colours/review"))
    source.storage.write(f"images/{image}", b"damaged")
    candidate = next(
        name for name in source.storage.files("models/colours/review") if name.endswith(".npz")
    )
    source.storage.write(f"models/colours/review/{candidate}", b"damaged")
    copied = copy(source, opened(memory))
    assert set(failed(copied)) == {f"images/{image}", f"models/colours/review/{candidate}"}
    assert opened(memory).serving("colours") == 2
    assert kept


def test_foreign_files_stay_behind(source: Repository, memory: str) -> None:
    """Files and links that are not Topwork's are no error, and are not copied."""
    expected = filled.files(source.storage)
    for name in ("notes.txt", "images/x.jpg", "models/colours/x", "models/colours/2/x.bin"):
        (source.root / name).write_text("foreign")
    (source.root / "models" / "A manual copy").mkdir()
    (source.root / "exemplars" / f"{'ab' * 32}.npz").symlink_to("/etc/hostname")
    (source.root / "models" / "empty").mkdir()
    copied = copy(source, opened(memory))
    assert failed(copied) == []
    assert {each.path for each in copied.problems} == {
        "models/.deleted-gone",
        "models/A manual copy",
    }
    assert filled.files(opened(memory).storage) == expected


def test_twin_of_a_backbone_is_copied(tmp_path: Path, memory: str) -> None:
    """The fp32 twin of an added backbone comes along; a missing one is no error."""
    source = Repository(tmp_path / "source")
    twin = stored.put_backbone(source, 1)
    source.add_backbone("whole", stored.put_quantised_backbone(source, 2, 1))
    source.add_backbone("alone", stored.put_quantised_backbone(source, 3, 4))
    assert failed(copy(source, opened(memory))) == []
    assert twin in opened(memory).stored("backbones")
    assert set(opened(memory).added_backbones()) == {"whole", "alone"}


# Earlier versions


@pytest.mark.parametrize("release", RELEASES)
def test_repository_of_an_earlier_release_is_copied(
    release: str, tmp_path: Path, target: str
) -> None:
    """Its files are the same in the target, but for its operations."""
    with tarfile.open(golden.ROOT / release / "left.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(tmp_path)  # noqa: S202 # our own archive
    source = Repository(tmp_path / "repository")
    there = opened(target)
    assert failed(copy(source, there)) == []
    expected = json.loads((tmp_path / "expected.json").read_text())
    assert there.serving("colours") == expected["serving"]
    assert list(there.serving_state("colours").pinned) == expected["pinned"]
    assert errors(there) == []
    copied, all_files = filled.files(there.storage), filled.files(source.storage)
    assert copied.items() <= all_files.items()
    left_out = {key for key in all_files.keys() - copied.keys() if not key.startswith("images/")}
    assert {key.partition("/")[0] for key in left_out} <= {"checkpoints", "workers"}
    assert answers(target) == answers(source.root)


@pytest.mark.parametrize("schema", ["schema-1", "schema-2"])
def test_revision_from_before_the_first_release_is_named(
    source: Repository, memory: str, schema: str
) -> None:
    """No version reads it any more, so it stays behind, and the model serves as before."""
    content = (golden.ROOT / schema / "Manifest.json").read_bytes()
    source.storage.write("models/colours/3/manifest.json", content)
    copied = copy(source, opened(memory))
    assert failed(copied) == ["models/colours/3/manifest.json"]
    assert opened(memory).serving("colours") == 2


# The command


def test_command_prints_numbers(
    source: Repository, target: str, run: Callable[..., Result]
) -> None:
    """It prints a row for each kind, and the deleted model; a repeated run copies nothing."""
    first = run(source.root, target)
    assert first.status == 0
    rows = {line.split()[0]: line.split()[1:] for line in first.out.splitlines()[1:] if line}
    assert rows["revision"] == ["3", "0"]
    assert rows["candidate"] == ["2", "0"]
    assert "models/.deleted-gone: the model was deleted" in first.out
    again = run(source.root, target, "--json").json
    assert (again["copied"]["revision"], again["present"]["revision"]) == (0, 3)
    assert again["serving"] == {"colours": 2}


def test_dry_run_writes_nothing(
    source: Repository, target: str, run: Callable[..., Result]
) -> None:
    """It prints what would be copied, the same numbers as the copy."""
    dry = run(source.root, target, "--dry-run", "--json").json
    assert filled.files(opened(target, writes=False).storage) == {}
    assert not Path(target).exists()
    real = run(source.root, target, "--json").json
    assert dry == real | {"dry_run": True}


def test_damage_is_exit_status_1(
    source: Repository, memory: str, run: Callable[..., Result]
) -> None:
    """A damaged file is named, and the status tells scripts."""
    source.storage.write("models/colours/2/head.onnx", b"damaged")
    done = run(source.root, memory)
    assert done.status == 1
    assert "error: models/colours/2: 2/head.onnx has sha256" in done.out.replace(
        "models/colours/2/head.onnx has", "2/head.onnx has"
    )
    assert "the serving revision 2 was not copied, so the pointer was not" in done.out


def test_model_option_copies_some_models(
    source: Repository, memory: str, run: Callable[..., Result]
) -> None:
    """Other models and backbones that they do not need stay behind."""
    tiny.publish(source, "a", tiny.embed_pictures({c: pictures(c, 9) for c in ("blue", "crimson")}))
    assert run(source.root, memory, "--model", "later", "--model", "a").status == 0
    target = opened(memory)
    assert target.model_names() == ["a", "later"]
    assert len(target.stored("backbones")) == 1
    assert target.added_backbones() == {}


def test_command_refuses_wrong_arguments(source: Repository, tmp_path: Path, memory: str) -> None:
    """A directory without a repository, a model that does not exist, and the source itself."""
    (tmp_path / "empty").mkdir()
    call = partial(command.main, standalone_mode=False)
    with pytest.raises(InvalidInput, match="is no repository"):
        call([str(tmp_path / "empty"), memory])
    with pytest.raises(InvalidInput, match="is the source"):
        call([str(source.root), f"{source.root}/../source/"])
    for model in ("none", "gone"):
        with pytest.raises(NotFound, match=f"models/{model}"):
            call([str(source.root), memory, "--model", model])
    assert opened(memory).models() == []
