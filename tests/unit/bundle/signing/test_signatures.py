"""Signed revisions: signing, verification, key rotation and tampering."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from support import stored
from support.signed import new_key, public, signing

from topwork.bundle.maintenance.check import check
from topwork.bundle.manifest import Manifest
from topwork.bundle.signing import keys, revisions, signatures
from topwork.bundle.signing.signatures import UNSIGNED, Signing, SigningFiles
from topwork.bundle.store import Repository
from topwork.errors import Corrupt, InvalidInput, NotFound
from topwork.storage.file_storage import FileStorage


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Return the path of a private key."""
    return new_key(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return the path of another private key."""
    return new_key(tmp_path, "other")


def published(root: Path, signs: Signing) -> tuple[Repository, Path]:
    """Return a repository with one revision, published with ``signs``, and its directory."""
    made = Repository(root / "repository", signs)
    stored.publish(made, [stored.put_shard(made, 1)])
    made.set_serving("m", 1, why="fit")
    return made, root / "repository" / "models" / "m" / "1"


def read(root: Path, trusts: Signing) -> Manifest:
    """Read the manifest with these trusted keys."""
    return Repository(root / "repository", trusts).manifest("m", 1)


def refusal(root: Path, trusts: Signing) -> str:
    """Return the error reason of a refused revision, which must be the same for every method."""
    repository = Repository(root / "repository", trusts)
    with pytest.raises(Corrupt) as caught:
        repository.manifest("m", 1)
    with pytest.raises(Corrupt):
        repository.set_serving("m", 1, why="rollback")
    assert repository.find("m", lambda _: True) is None
    problems = check(Repository(root / "repository"), signing=trusts)
    (problem,) = [problem for problem in problems if problem.severity == "error"]
    assert (problem.path, problem.text) == ("models/m/1/manifest.sig", str(caught.value))
    return caught.value.reason


def test_publish_signs_the_revision(tmp_path: Path, key: Path) -> None:
    """A published revision has a signature that verifies with the public key."""
    made, directory = published(tmp_path, signing(key))
    found = json.loads((directory / "manifest.sig").read_bytes())
    assert list(found["signatures"]) == [keys.read_signing_key(key).id]
    assert read(tmp_path, signing(None, key, publishes=False)) == made.manifest("m", 1)
    assert not check(Repository(made.root), signing=signing(None, key, publishes=False))


def test_without_trusted_keys_signatures_are_ignored(tmp_path: Path, key: Path) -> None:
    """Without trusted keys even a damaged manifest.sig is no error."""
    _, directory = published(tmp_path, signing(key))
    (directory / "manifest.sig").write_bytes(b"damaged")
    assert read(tmp_path, UNSIGNED).revision == 1


def test_unsigned_revision_is_refused_if_signatures_are_required(tmp_path: Path, key: Path) -> None:
    """An unsigned revision is UNSIGNED with ``required``, and readable otherwise."""
    published(tmp_path, UNSIGNED)
    assert refusal(tmp_path, signing(None, key, publishes=False)) == "UNSIGNED"
    assert read(tmp_path, signing(None, key, required=False, publishes=False)).revision == 1


@pytest.mark.parametrize("required", [True, False])
def test_signature_of_an_untrusted_key_is_refused(
    tmp_path: Path, key: Path, other: Path, required: bool
) -> None:
    """A revision signed only by untrusted keys is refused; the message has their ids."""
    published(tmp_path, signing(other))
    trusts = signing(None, key, required=required, publishes=False)
    assert refusal(tmp_path, trusts) == "SIGNATURE_UNTRUSTED"
    with pytest.raises(Corrupt, match=keys.read_signing_key(other).id):
        read(tmp_path, trusts)


@pytest.mark.parametrize("required", [True, False])
def test_signature_covers_every_byte_of_the_manifest(
    tmp_path: Path, key: Path, required: bool
) -> None:
    """A change of any byte of manifest.json is SIGNATURE_INVALID."""
    _, directory = published(tmp_path, signing(key))
    trusts = signing(None, key, required=required, publishes=False)
    path = directory / "manifest.json"
    content = path.read_bytes()
    for position in range(0, len(content), 97):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(Corrupt) as caught:
            read(tmp_path, trusts)
        assert caught.value.reason == "SIGNATURE_INVALID"
    path.write_bytes(content.replace(b'"seed": 0', b'"seed": 1'))  # no other file contradicts it
    assert refusal(tmp_path, trusts) == "SIGNATURE_INVALID"
    path.write_bytes(content)
    assert read(tmp_path, trusts).revision == 1


@pytest.mark.parametrize("name", ["head.onnx", "metrics.json", "report.html", "examples.npz"])
def test_signature_covers_all_files(tmp_path: Path, key: Path, name: str) -> None:
    """A changed file is Corrupt, since the signed manifest has its sha256."""
    made, directory = published(tmp_path, signing(key, key))
    (directory / name).write_bytes(b"other")
    manifest = made.manifest("m", 1)
    call = {
        "head.onnx": made.head,
        "metrics.json": made.metrics,
        "report.html": made.report,
        "examples.npz": made.examples,
    }
    with pytest.raises(Corrupt, match="has sha256"):
        call[name](manifest)


def test_copy_of_a_signed_revision_is_refused(tmp_path: Path, key: Path) -> None:
    """A copy under another number or model is Corrupt, since the manifest has both."""
    made, directory = published(tmp_path, signing(key, key))
    for copy in (directory.with_name("2"), directory.parent.with_name("n") / "1"):
        copy.mkdir(parents=True)
        for file in directory.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    for model, revision in (("m", 2), ("n", 1)):
        with pytest.raises(Corrupt, match="is for m revision 1"):
            made.manifest(model, revision)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"signatures": {}, "schema": 1}',
        b'{"signatures": {"../../x": "AA=="}}',
        b'{"signatures": {"0123456789abcdef": "?"}}',
    ],
)
def test_invalid_signature_file_is_refused(tmp_path: Path, key: Path, content: bytes) -> None:
    """A revision with an invalid manifest.sig is Corrupt."""
    _, directory = published(tmp_path, signing(key))
    (directory / "manifest.sig").write_bytes(content)
    refusal(tmp_path, signing(None, key, publishes=False))


def test_key_rotation(tmp_path: Path, key: Path, other: Path) -> None:
    """A new key signs revisions of the old key, too; both can be trusted meanwhile."""
    made, directory = published(tmp_path, signing(key))
    both = signing(None, key, other, publishes=False)
    only_new = signing(None, other, publishes=False)
    assert read(tmp_path, both).revision == 1
    assert refusal(tmp_path, only_new) == "SIGNATURE_UNTRUSTED"
    new = keys.read_signing_key(other)
    assert revisions.sign(Repository(made.root), "m", 1, new)
    assert not revisions.sign(Repository(made.root), "m", 1, new)
    assert read(tmp_path, only_new) == read(tmp_path, signing(None, key, publishes=False))
    ids = tuple(sorted((new.id, keys.read_signing_key(key).id)))
    content = (directory / "manifest.json").read_bytes()
    assert both.check(FileStorage(directory), ".", content) == ids


def test_invalid_signature_of_one_trusted_key_is_refused(
    tmp_path: Path, key: Path, other: Path
) -> None:
    """A valid signature does not excuse an invalid one of another trusted key."""
    _, directory = published(tmp_path, signing(key))
    wrong = signatures.add(
        keys.read_signing_key(other),
        b"else",
        signatures.read(FileStorage(directory), "manifest.sig"),
    )
    (directory / "manifest.sig").write_bytes(wrong)
    assert refusal(tmp_path, signing(None, key, other, publishes=False)) == "SIGNATURE_INVALID"
    assert read(tmp_path, signing(None, key, publishes=False)).revision == 1


@pytest.mark.parametrize(
    "damaged", ["models/m/1/head.onnx", "backbones/*/backbone.onnx", "exemplars/*.npz"]
)
def test_sign_refuses_a_damaged_revision(tmp_path: Path, key: Path, damaged: str) -> None:
    """All files that the manifest refers to are verified before signing."""
    made, directory = published(tmp_path, UNSIGNED)
    (path,) = made.root.glob(damaged)
    path.write_bytes(b"other")
    with pytest.raises(Corrupt):
        revisions.sign(made, "m", 1, keys.read_signing_key(key))
    assert not (directory / "manifest.sig").exists()


def test_sign_of_an_unknown_revision_is_not_found(tmp_path: Path, key: Path) -> None:
    """An unknown revision or model is NotFound."""
    made, _ = published(tmp_path, UNSIGNED)
    for model, revision in (("m", 2), ("n", 1)):
        with pytest.raises(NotFound):
            revisions.sign(made, model, revision, keys.read_signing_key(key))


def test_signing_files_must_be_consistent(key: Path, other: Path) -> None:
    """Required signatures need trusted keys, and publishing needs one of their private keys."""
    trusted = public(key)
    for files, publishes, message in (
        (SigningFiles(require_signed=True), False, "give --trusted-keys"),
        (SigningFiles(trusted_keys=trusted, require_signed=True), True, "give --signing-key"),
        (
            SigningFiles(trusted_keys=trusted, signing_key=other),
            True,
            "is not one of the trusted keys",
        ),
    ):
        with pytest.raises(InvalidInput, match=message):
            files.read(publishes=publishes)


def test_private_key_stays_in_the_publishing_process(key: Path) -> None:
    """Only paths are pickled, and a process that only reads does not load the private key."""
    files = SigningFiles(trusted_keys=public(key), require_signed=True, signing_key=key)
    assert pickle.loads(pickle.dumps(files)) == files  # noqa: S301  # as multiprocessing does
    assert files.read(publishes=False).key is None
    assert files.read(publishes=True).key is not None


def test_verify_works_with_a_damaged_serving_pointer(tmp_path: Path, key: Path) -> None:
    """With an unreadable serving.json the revisions are verified, and none is serving."""
    repository, _ = published(tmp_path, signing(key))
    (repository.root / repository.serving_key("m")).write_bytes(b"{}")
    (verified,) = revisions.verify(repository, signing(None, key, publishes=False))
    assert (verified.revision, verified.serving, verified.problem) == (1, False, "")
