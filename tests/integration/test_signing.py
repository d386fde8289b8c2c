"""A server that requires signatures, the worker that signs for it, and the commands around them."""

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

VIOLETS = [(f"violet-{n}.png", content) for n, content in enumerate(pictures("violet", 12))]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of the private key."""
    return new_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Iterator[Running]:
    """Yield a server that requires signatures; of its models ``colours`` has one, ``odd`` none."""
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
        started.fact("worker ready")
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def client(signed: Running) -> Iterator[Client]:
    """Yield its client."""
    with Client(signed.address) as made:
        yield made


@pytest.fixture
def signer(signed: Running, client: Client, key: Path) -> Manifest:
    """Return the manifest of a revision that the worker made, which serves."""
    if len(client.model("colours").revisions) == 1:
        *_, finished = client.watch(client.add_class("colours", "violet", VIOLETS).name)
        assert result(finished).revision.revision == 2
    manifest = Repository(signed.repository).manifest("colours", 2)
    assert read_signing_key(key).id
    return manifest


def test_a_worker_signs_what_it_publishes(signed: Running, key: Path, signer: Manifest) -> None:
    """A revision of AddClass has the worker's signature, and serves where one is required."""
    directory = signed.repository / "models" / "colours" / str(signer.revision)
    said = signatures.read(directory / signatures.FILE)
    assert list(said.signatures) == [read_signing_key(key).id]


def test_an_unsigned_model_is_not_served(signed: Running, client: Client) -> None:
    """A model whose only revision is unsigned is NOT_FOUND, and the log says why."""
    assert failure(lambda: client.model("odd")).code == "NOT_FOUND"
    errors = [one for one in signed.facts if one["event"] == "revision cannot be loaded"]
    assert any("odd" in one["model"] and "not signed" in one["error"] for one in errors)


def test_the_signed_revision_goes_on_where_an_unsigned_one_comes(
    signed: Running, client: Client, signer: Manifest
) -> None:
    """Whoever moves the pointer to a revision without a signature moves nothing that serves."""
    unsigned = Repository(signed.repository)
    copy = tiny.publish_copy(unsigned, signer)
    unsigned.set_serving("colours", copy.revision, why="fit")
    error = failure(lambda: client.rollback("colours", copy.revision))
    assert (error.code, error.reason) == ("DATA_LOSS", "UNSIGNED")
    asked = failure(lambda: client.classify("colours", [picture("blue", 1)], revision=3))
    assert (asked.code, asked.reason) == ("DATA_LOSS", "UNSIGNED")
    signed.fact("revision cannot be loaded", count=2)
    answer = client.classify("colours", [picture("violet", 60)])
    assert answer.revision == 2
    assert answer.results[0].predictions[0].label == "violet"
    unsigned.set_serving("colours", 2, why="rollback")


def test_what_is_not_signed_is_told(
    signed: Running, key: Path, signer: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` and `fsck` name revisions that a server would refuse, and end with 1."""
    assert signer.revision == 2
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
    """`keygen` writes both keys and prints their id; a second time it changes nothing."""
    status, output = run(["keygen", str(tmp_path / "key")], capsys)
    assert (status, output.strip()) == (0, read_signing_key(tmp_path / "key").id)
    status, output = run(["keygen", str(tmp_path / "key")], capsys)
    assert status == 1
    assert "File exists" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--require-signed"], "give --trusted-keys"),
        (["--require-signed", "--trusted-keys", "KEY.pub"], "give --signing-key"),
        (["--trusted-keys", "KEY"], "has a private key"),
        (["--signing-key", "KEY.pub"], "has no private Ed25519 key"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "worker"])
def test_keys_that_do_not_fit_end_the_start(
    command: str,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    key: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A server or worker that could not read or publish anything says so and ends with 1."""
    given = [one.replace("KEY", str(key)) for one in arguments]
    status, output = run([command, "--repository", str(tmp_path), *given], capsys)
    assert status == 1
    assert said in " ".join(output.split())
