"""Keys: made once, read from PEM as others write it, and never shown."""

from __future__ import annotations

import builtins
import hashlib
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as formats
from cryptography.hazmat.primitives.asymmetric import ec
from support.signed import new_key, public

from topwork.bundle.signing import keys
from topwork.errors import InvalidInput


def test_a_key_signs_what_its_public_one_verifies(tmp_path: Path) -> None:
    """A signature is verified by the public key, and is of these very bytes."""
    identity = keys.generate(tmp_path / "key")
    signing = keys.read_signing_key(tmp_path / "key")
    trusted = keys.read_trusted_keys(tmp_path / "key.pub")
    signature = signing.sign(b"manifest")
    assert signing.id == identity
    assert list(trusted) == [identity]
    assert trusted[identity].verifies(signature, b"manifest")
    assert not trusted[identity].verifies(signature, b"Manifest")
    assert not trusted[identity].verifies(signature[:-1], b"manifest")
    assert not trusted[identity].verifies(b"", b"manifest")


def test_a_private_key_is_its_owners_alone(tmp_path: Path) -> None:
    """Nobody else may read the file, however open the umask, and no text shows the key."""
    before = os.umask(0)
    try:
        key = new_key(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    signing = keys.read_signing_key(key)
    assert repr(signing) == str(signing) == f"SigningKey({signing.id})"


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    """A second keygen at the same place is InvalidInput, and the first key stays."""
    before = new_key(tmp_path).read_bytes()
    with pytest.raises(InvalidInput, match="File exists"):
        keys.generate(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


def test_openssl_verifies_a_signature(tmp_path: Path) -> None:
    """What is signed here can be verified without Topwork."""
    key = new_key(tmp_path)
    (tmp_path / "content").write_bytes(b"manifest")
    (tmp_path / "signature").write_bytes(keys.read_signing_key(key).sign(b"manifest"))
    command = "openssl pkeyutl -verify -pubin -inkey key.pub -rawin -in content -sigfile signature"
    done = subprocess.run(
        command.split(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Signature Verified Successfully" in done.stdout


def test_trusted_keys_are_a_file_or_a_directory(tmp_path: Path) -> None:
    """One file of several keys, text between them, is the same as a directory of files."""
    made = [new_key(tmp_path, name) for name in ("a", "b")]
    directory = tmp_path / "trusted"
    directory.mkdir()
    (directory / ".hidden").write_text("no key")
    for key in made:
        (directory / key.name).write_bytes(public(key).read_bytes())
    together = tmp_path / "together.pem"
    together.write_bytes(b"of 2026\n" + b"\nof 2027\n".join(public(k).read_bytes() for k in made))
    found = keys.read_trusted_keys(directory)
    assert found.keys() == keys.read_trusted_keys(together).keys()
    assert found.keys() == {keys.read_signing_key(key).id for key in made}


def test_an_id_is_the_beginning_of_a_sha256(tmp_path: Path) -> None:
    """Anybody can tell a key's id: 16 digits of the sha256 of its 32 bytes."""
    key = new_key(tmp_path)
    loaded = formats.load_pem_public_key(public(key).read_bytes())
    raw = loaded.public_bytes(formats.Encoding.Raw, formats.PublicFormat.Raw)
    assert keys.read_signing_key(key).id == hashlib.sha256(raw).hexdigest()[:16]


def other_key(**options: Any) -> bytes:
    """Return a private key of another kind in PEM."""
    private = ec.generate_private_key(ec.SECP256R1())
    protection = options.get("protection", formats.NoEncryption())
    return private.private_bytes(formats.Encoding.PEM, formats.PrivateFormat.PKCS8, protection)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no private Ed25519 key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n", "has no private"),
        (other_key(), "has no private Ed25519 key"),
        (other_key(protection=formats.BestAvailableEncryption(b"x")), "is encrypted"),
    ],
)
def test_a_file_without_a_signing_key(tmp_path: Path, content: bytes, said: str) -> None:
    """Anything but an Ed25519 key without a passphrase is InvalidInput, and shows no content."""
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InvalidInput, match=said) as caught:
        keys.read_signing_key(tmp_path / "key")
    assert "SECRET" not in str(caught.value)


def test_a_file_without_trusted_keys(tmp_path: Path) -> None:
    """A private key, another kind of key, none at all, and no file are InvalidInput, each named."""
    key = new_key(tmp_path)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = other.public_bytes(formats.Encoding.PEM, formats.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "other").write_bytes(public(key).read_bytes() + pem)
    (tmp_path / "text").write_bytes(b"none")
    (tmp_path / "empty").mkdir()
    for path, said in (
        (key, "has a private key"),
        (tmp_path / "other", "has no public Ed25519 key"),
        (tmp_path / "text", "has no public Ed25519 key"),
        (tmp_path / "empty", "has no public keys"),
        (tmp_path / "missing", "cannot be read: No such file"),
    ):
        with pytest.raises(InvalidInput, match=said):
            keys.read_trusted_keys(path)


def test_without_cryptography_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has not installed it is told how, before anything is written."""
    imported = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "cryptography":
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (keys.generate, keys.read_signing_key, keys.read_trusted_keys):
        with pytest.raises(InvalidInput, match=r"pip install 'topwork\[signing\]'"):
            call(tmp_path / "key")
    assert not list(tmp_path.iterdir())
