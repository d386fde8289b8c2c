"""Signed revisions: where that is asked for nothing else is read, and nothing in them changes."""

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


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Return the file of a private key."""
    return new_key(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return the file of another."""
    return new_key(tmp_path, "other")


def published(root: Path, signs: Signing) -> tuple[Repository, Path]:
    """Return a repository with one revision, published with ``signs``, and its directory."""
    made = Repository(root / "repository", signs)
    stored.publish(made, [stored.put_shard(made, 1)])
    made.set_serving("m", 1, why="fit")
    return made, root / "repository" / "models" / "m" / "1"


def read(root: Path, trusts: Signing) -> Manifest:
    """Return the manifest as one reads it who trusts these."""
    return Repository(root / "repository", trusts).manifest("m", 1)


def refusal(root: Path, trusts: Signing) -> str:
    """Return the reason why a revision is refused; every way to it must give the same."""
    repository = Repository(root / "repository", trusts)
    with pytest.raises(Corrupt) as caught:
        repository.manifest("m", 1)
    with pytest.raises(Corrupt):
        repository.set_serving("m", 1, why="rollback")
    assert repository.find("m", lambda _: True) is None
    (problem,) = [
        one
        for one in check(Repository(root / "repository"), signing=trusts)
        if one.severity == "error"
    ]
    assert (problem.path, problem.text) == ("models/m/1/manifest.sig", str(caught.value))
    return caught.value.reason


def test_what_is_published_is_signed(tmp_path: Path, key: Path) -> None:
    """A revision has its key's signature from the first moment, and who trusts that reads it."""
    made, directory = published(tmp_path, signing(key))
    found = json.loads((directory / "manifest.sig").read_bytes())
    assert list(found["signatures"]) == [keys.read_signing_key(key).id]
    assert read(tmp_path, signing(None, key, publishes=False)) == made.manifest("m", 1)
    assert not check(Repository(made.root), signing=signing(None, key, publishes=False))


def test_without_keys_no_signature_is_looked_at(tmp_path: Path, key: Path) -> None:
    """Who trusts no keys reads signed and unsigned revisions alike, as before."""
    _, directory = published(tmp_path, signing(key))
    (directory / "manifest.sig").write_bytes(b"damaged")
    assert read(tmp_path, UNSIGNED).revision == 1


def test_an_unsigned_revision_is_refused_where_one_must_sign(tmp_path: Path, key: Path) -> None:
    """It is Corrupt with the reason UNSIGNED; where signatures are not required it is read."""
    published(tmp_path, UNSIGNED)
    assert refusal(tmp_path, signing(None, key, publishes=False)) == "UNSIGNED"
    assert read(tmp_path, signing(None, key, required=False, publishes=False)).revision == 1


@pytest.mark.parametrize("required", [True, False])
def test_a_strangers_signature_is_refused(
    tmp_path: Path, key: Path, other: Path, required: bool
) -> None:
    """What only keys have signed that nobody trusts is refused, and the message names them."""
    published(tmp_path, signing(other))
    trusts = signing(None, key, required=required, publishes=False)
    assert refusal(tmp_path, trusts) == "SIGNATURE_UNTRUSTED"
    with pytest.raises(Corrupt, match=keys.read_signing_key(other).id):
        read(tmp_path, trusts)


@pytest.mark.parametrize("required", [True, False])
def test_every_byte_of_a_manifest_is_signed(tmp_path: Path, key: Path, required: bool) -> None:
    """Whichever byte is changed, the signature is wrong: SIGNATURE_INVALID."""
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
    assert refusal(tmp_path, trusts) == "SIGNATURE_INVALID"
    path.write_bytes(content)
    assert read(tmp_path, trusts).revision == 1


@pytest.mark.parametrize("name", ["head.onnx", "metrics.json", "report.html"])
def test_all_files_are_covered(tmp_path: Path, key: Path, name: str) -> None:
    """What the manifest names cannot be changed without it: the sha256 is signed."""
    made, directory = published(tmp_path, signing(key, key))
    (directory / name).write_bytes(b"other")
    manifest = made.manifest("m", 1)
    call = {"head.onnx": made.head, "metrics.json": made.metrics, "report.html": made.report}
    with pytest.raises(Corrupt, match="has sha256"):
        call[name](manifest)


def test_a_signed_revision_is_no_other_one(tmp_path: Path, key: Path) -> None:
    """Copied to another number or model, a signed revision is refused: it says what it is."""
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
def test_a_damaged_signature_file_is_refused(tmp_path: Path, key: Path, content: bytes) -> None:
    """Whatever lies in place of signatures, the revision is Corrupt."""
    _, directory = published(tmp_path, signing(key))
    (directory / "manifest.sig").write_bytes(content)
    refusal(tmp_path, signing(None, key, publishes=False))


def test_keys_follow_each_other(tmp_path: Path, key: Path, other: Path) -> None:
    """Both are trusted for a while; what the old one signed is signed by the new one, too."""
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
    assert both.check(directory, (directory / "manifest.json").read_bytes()) == ids


def test_one_wrong_signature_among_trusted_ones_is_refused(
    tmp_path: Path, key: Path, other: Path
) -> None:
    """A right signature does not make up for a wrong one of another trusted key."""
    _, directory = published(tmp_path, signing(key))
    wrong = signatures.add(
        keys.read_signing_key(other), b"else", signatures.read(directory / "manifest.sig")
    )
    (directory / "manifest.sig").write_bytes(wrong)
    assert refusal(tmp_path, signing(None, key, other, publishes=False)) == "SIGNATURE_INVALID"
    assert read(tmp_path, signing(None, key, publishes=False)).revision == 1


@pytest.mark.parametrize(
    "damaged", ["models/m/1/head.onnx", "backbones/*/backbone.onnx", "exemplars/*.npz"]
)
def test_what_is_damaged_is_not_signed(tmp_path: Path, key: Path, damaged: str) -> None:
    """Before a revision is signed all that its manifest names is verified."""
    made, directory = published(tmp_path, UNSIGNED)
    (path,) = made.root.glob(damaged)
    path.write_bytes(b"other")
    with pytest.raises(Corrupt):
        revisions.sign(made, "m", 1, keys.read_signing_key(key))
    assert not (directory / "manifest.sig").exists()


def test_what_is_not_there_is_not_signed(tmp_path: Path, key: Path) -> None:
    """An unknown revision or model is NotFound."""
    made, _ = published(tmp_path, UNSIGNED)
    for model, revision in (("m", 2), ("n", 1)):
        with pytest.raises(NotFound):
            revisions.sign(made, model, revision, keys.read_signing_key(key))


def test_what_would_be_refused_ends_the_start(key: Path, other: Path) -> None:
    """Who requires signatures needs trusted keys, and who publishes a key that is one of them."""
    trusted = public(key)
    for files, publishes, said in (
        (SigningFiles(require_signed=True), False, "give --trusted-keys"),
        (SigningFiles(trusted_keys=trusted, require_signed=True), True, "give --signing-key"),
        (
            SigningFiles(trusted_keys=trusted, signing_key=other),
            True,
            "is not one of the trusted keys",
        ),
    ):
        with pytest.raises(InvalidInput, match=said):
            files.read(publishes=publishes)


def test_keys_stay_in_their_process(key: Path) -> None:
    """What crosses process boundaries has paths, and who only reads holds no private key."""
    files = SigningFiles(trusted_keys=public(key), require_signed=True, signing_key=key)
    assert pickle.loads(pickle.dumps(files)) == files  # noqa: S301  # as multiprocessing does
    assert files.read(publishes=False).key is None
    assert files.read(publishes=True).key is not None


def test_revisions_are_told_where_the_pointer_is_damaged(tmp_path: Path, key: Path) -> None:
    """Who signed what is known without serving.json; none of its revisions is said to serve."""
    repository, _ = published(tmp_path, signing(key))
    repository.serving_file("m").write_bytes(b"{}")
    verified = revisions.verify(repository, signing(None, key, publishes=False))
    assert [(one.revision, one.serving, one.problem) for one in verified] == [(1, False, "")]
