"""A server that requires signatures, its worker that signs, and the signing commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny
from support.pictures import picture, pictures
from support.servers import Running, failure
from support.signed import new_key, public

from topwork import Client, result
from topwork.bundle.manifest import Manifest
from topwork.bundle.signing import signatures
from topwork.bundle.signing.keys import read_signing_key
from topwork.bundle.store import Repository
from topwork.cli import main
from topwork.storage.file_storage import FileStorage

VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of the private key."""
    return new_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Iterator[Running]:
    """Yield a server that requires signatures; model ``colours`` is signed, ``odd`` is not."""
    root = tmp_path_factory.mktemp("signed") / "repository"
    made = tiny.repository(root)
    tiny.publish_copy(made, made.manifest("colours", 1), model="odd")
    made.set_serving("odd", 1, why="fit")
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["sign", str(root), "--signing-key", str(key), "--model", "colours"]
        patch.setattr(sys, "argv", ["topwork", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    command = [sys.executable, "-m", "topwork.cli", "serve", "--repository", str(root)]
    command += ["--address", "127.0.0.1:0", "--provider", "cpu", "--log-format", "json"]
    command += ["--trusted-keys", str(public(key)), "--require-signed", "--signing-key", str(key)]
    started = Running(command, root)
    try:
        started.log_entry("worker ready")
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def client(signed: Running) -> Iterator[Client]:
    """Yield a client of that server."""
    with Client(signed.address) as made:
        yield made


@pytest.fixture
def by_worker(signed: Running, client: Client, key: Path) -> Manifest:
    """Return the manifest of the serving revision, made by the worker."""
    if len(client.model("colours").revisions) == 1:
        *_, finished = client.watch(client.add_class("colours", "violet", VIOLETS).name)
        assert result(finished).revision.revision == 2
    manifest = Repository(signed.repository).manifest("colours", 2)
    assert read_signing_key(key).id
    return manifest


def test_a_worker_signs_its_revisions(signed: Running, key: Path, by_worker: Manifest) -> None:
    """A revision of AddClass has the worker's signature and serves."""
    key_of_file = f"models/colours/{by_worker.revision}/{signatures.FILE}"
    stored = signatures.read(FileStorage(signed.repository), key_of_file)
    assert list(stored.signatures) == [read_signing_key(key).id]


def test_an_unsigned_model_is_not_served(signed: Running, client: Client) -> None:
    """A model whose only revision is unsigned is NOT_FOUND, and the log says why."""
    assert failure(lambda: client.model("odd")).code == "NOT_FOUND"
    errors = [
        entry for entry in signed.log_entries if entry["event"] == "revision cannot be loaded"
    ]
    assert any("odd" in entry["model"] and "not signed" in entry["error"] for entry in errors)


def test_an_unsigned_revision_does_not_replace_a_signed_one(
    signed: Running, client: Client, by_worker: Manifest
) -> None:
    """The signed revision still serves after serving.json names an unsigned one."""
    unsigned = Repository(signed.repository)
    copy = tiny.publish_copy(unsigned, by_worker)
    unsigned.set_serving("colours", copy.revision, why="fit")
    error = failure(lambda: client.rollback("colours", copy.revision))
    assert (error.code, error.reason) == ("DATA_LOSS", "UNSIGNED")
    error = failure(lambda: client.classify("colours", [picture("blue", 1)], revision=3))
    assert (error.code, error.reason) == ("DATA_LOSS", "UNSIGNED")
    signed.log_entry("revision cannot be loaded", count=2)
    answer = client.classify("colours", [picture("violet", 60)])
    assert answer.revision == 2
    assert answer.results[0].predictions[0].label == "violet"
    unsigned.set_serving("colours", 2, why="rollback")


def test_verify_and_fsck_name_unsigned_revisions(
    signed: Running, key: Path, by_worker: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` and `fsck` name revisions that a server would refuse, and exit with 1."""
    assert by_worker.revision == 2
    keys = ["--trusted-keys", str(public(key))]
    for command in (["verify", *keys], ["fsck", *keys, "--require-signed"]):
        status, output = run([command[0], str(signed.repository), *command[1:]], capsys)
        assert status == 1
        assert "odd/1/manifest.sig is missing: the revision is not signed" in output
        assert "colours/2/manifest.sig" not in output
    assert run(["fsck", str(signed.repository), *keys], capsys)[0] == 0


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the command line; return exit status and output, unwrapped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["topwork", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


def test_keygen_prints_the_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`keygen` writes both keys and prints their id; it does not overwrite them."""
    status, output = run(["keygen", str(tmp_path / "key")], capsys)
    assert (status, output.strip()) == (0, read_signing_key(tmp_path / "key").id)
    status, output = run(["keygen", str(tmp_path / "key")], capsys)
    assert status == 1
    assert "File exists" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--require-signed"], "give --trusted-keys"),
        (["--require-signed", "--trusted-keys", "KEY.pub"], "give --signing-key"),
        (["--trusted-keys", "KEY"], "has a private key"),
        (["--signing-key", "KEY.pub"], "has no private Ed25519 key"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "worker"])
def test_unusable_keys_end_the_start(
    command: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    key: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A server or worker that could not read or publish anything exits with 1."""
    options = [argument.replace("KEY", str(key)) for argument in arguments]
    status, output = run([command, "--repository", str(tmp_path), *options], capsys)
    assert status == 1
    assert message in " ".join(output.split())
