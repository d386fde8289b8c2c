"""Ed25519 keys (RFC 8032) that sign manifests: generation, ids and PEM files.

The PEM files are compatible with other tools: PKCS #8 for private keys, SubjectPublicKeyInfo for
public keys. The package cryptography implements the cryptography.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from topwork.errors import InvalidInput

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PUBLIC_SUFFIX = ".pub"

_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """Private key, hidden in ``str`` and ``repr``."""

    id: str
    _private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.id})"

    def sign(self, content: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._private.sign(content)


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """Public key whose signatures are accepted."""

    id: str
    _public: Ed25519PublicKey

    def verifies(self, signature: bytes, content: bytes) -> bool:
        """Return True if ``signature`` is a valid signature of ``content`` by this key."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._public.verify(signature, content)
        except InvalidSignature:
            return False
        return True


def generate(path: Path) -> str:
    """Write a new private key to ``path`` and its public key to ``path``.pub; return their id.

    Only the owner can read the private key. Raises InvalidInput if a file exists already.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization as formats
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    private_pem = private.private_bytes(
        formats.Encoding.PEM, formats.PrivateFormat.PKCS8, formats.NoEncryption()
    )
    public_pem = public.public_bytes(
        formats.Encoding.PEM, formats.PublicFormat.SubjectPublicKeyInfo
    )
    for file, content, mode in (
        (path, private_pem, 0o600),
        (path.with_name(path.name + PUBLIC_SUFFIX), public_pem, 0o644),
    ):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:
            raise InvalidInput(f"cannot create {file}: {error.strerror}", field="key") from error
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
    return _key_id(public)


def read_signing_key(path: Path) -> SigningKey:
    """Return the private key in a PEM file. Raises InvalidInput."""
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(_read(path), password=None)
    except TypeError:
        raise InvalidInput(
            f"{path} is encrypted; give a key without a passphrase", field="signing_key"
        ) from None
    except (ValueError, UnsupportedAlgorithm):  # their text may reveal the content of the file
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise InvalidInput(f"{path} has no private Ed25519 key in PEM", field="signing_key")
    return SigningKey(_key_id(private.public_key()), private)


def read_trusted_keys(path: Path) -> dict[str, TrustedKey]:
    """Return the public keys of a PEM file, or of all visible files of a directory, by id.

    A file may have several keys. Raises InvalidInput for a file without keys.
    """
    _require_cryptography()
    files = [path]
    if path.is_dir():
        entries = sorted(path.iterdir())
        files = [entry for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    keys = {key.id: key for file in files for key in _read_public_keys(file)}
    if not keys:
        raise InvalidInput(f"{path} has no public keys", field="trusted_keys")
    return keys


def _read_public_keys(file: Path) -> list[TrustedKey]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read(file)
    if b"PRIVATE KEY" in content:
        raise InvalidInput(
            f"{file} has a private key; give the public key, which keygen wrote to "
            f"*{PUBLIC_SUFFIX}",
            field="trusted_keys",
        )
    keys = []
    for block in _PUBLIC.findall(content) or [content]:
        try:
            public = load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm):
            public = None
        if not isinstance(public, Ed25519PublicKey):
            raise InvalidInput(f"{file} has no public Ed25519 key in PEM", field="trusted_keys")
        keys.append(TrustedKey(_key_id(public), public))
    return keys


def _key_id(public: Ed25519PublicKey) -> str:
    """Return the id of a key: the first 16 hexadecimal digits of its sha256."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="key") from error


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401 - only to test that it is installed
    except ImportError:
        raise InvalidInput(
            "signatures need the package cryptography: pip install 'topwork[signing]'", field="key"
        ) from None
