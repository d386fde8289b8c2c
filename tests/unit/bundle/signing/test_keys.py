"""Signing keys: generation, PEM files, ids and secrecy."""

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


def test_public_key_verifies_a_signature(tmp_path: Path) -> None:
    """The public key accepts the signature for the signed bytes only."""
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


def test_private_key_is_secret(tmp_path: Path) -> None:
    """Only the owner can read the file, with any umask, and ``repr`` hides the key."""
    before = os.umask(0)
    try:
        key = new_key(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    signing = keys.read_signing_key(key)
    assert repr(signing) == str(signing) == f"SigningKey({signing.id})"


def test_generate_does_not_overwrite_a_key(tmp_path: Path) -> None:
    """A second key with the same path is InvalidInput, and the first key stays."""
    before = new_key(tmp_path).read_bytes()
    with pytest.raises(InvalidInput, match="File exists"):
        keys.generate(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


def test_openssl_verifies_a_signature(tmp_path: Path) -> None:
    """Signatures can be verified with openssl alone."""
    key = new_key(tmp_path)
    (tmp_path / "content").write_bytes(b"manifest")
    (tmp_path / "signature").write_bytes(keys.read_signing_key(key).sign(b"manifest"))
    command = "openssl pkeyutl -verify -pubin -inkey key.pub -rawin -in content -sigfile signature"
    done = subprocess.run(
        command.split(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Signature Verified Successfully" in done.stdout


def test_trusted_keys_are_a_file_or_a_directory(tmp_path: Path) -> None:
    """A file with several keys and text between them equals a directory of key files."""
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


def test_key_id_is_a_prefix_of_the_sha256(tmp_path: Path) -> None:
    """An id is the first 16 digits of the sha256 of the 32 bytes of the public key."""
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
    ("content", "message"),
    [
        (b"", "has no private Ed25519 key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n", "has no private"),
        (other_key(), "has no private Ed25519 key"),
        (other_key(protection=formats.BestAvailableEncryption(b"x")), "is encrypted"),
    ],
)
def test_read_signing_key_refuses_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    """Only an unencrypted Ed25519 key is accepted, and no message shows the file's content."""
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        keys.read_signing_key(tmp_path / "key")
    assert "SECRET" not in str(caught.value)


def test_read_trusted_keys_refuses_other_files(tmp_path: Path) -> None:
    """A private key, another kind of key, no key, and a missing file are InvalidInput."""
    key = new_key(tmp_path)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = other.public_bytes(formats.Encoding.PEM, formats.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "other").write_bytes(public(key).read_bytes() + pem)
    (tmp_path / "text").write_bytes(b"none")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (key, "has a private key"),
        (tmp_path / "other", "has no public Ed25519 key"),
        (tmp_path / "text", "has no public Ed25519 key"),
        (tmp_path / "empty", "has no public keys"),
        (tmp_path / "missing", "cannot be read: No such file"),
    ):
        with pytest.raises(InvalidInput, match=message):
            keys.read_trusted_keys(path)


def test_missing_cryptography_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without cryptography the message names the extra to install, and no file is written."""
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
