"""Keys that sign manifests: how they are made, named and read from files.

Ed25519 (RFC 8032), as PEM files that other tools read and write, too: PKCS #8 for private keys,
SubjectPublicKeyInfo for public ones. The package cryptography does all that is secret.
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
    """A private key; neither its text nor its repr shows anything of it."""

    id: str
    _private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.id})"

    def sign(self, content: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._private.sign(content)


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key whose signatures count."""

    id: str
    _public: Ed25519PublicKey

    def verifies(self, signature: bytes, content: bytes) -> bool:
        """Return whether ``signature`` is this key's, of ``content``."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._public.verify(signature, content)
        except InvalidSignature:
            return False
        return True


def generate(path: Path) -> str:
    """Write a new private key to ``path``, the public one beside it, and return their id.

    Only the owner may read the private one. Raises InvalidInput if a file is there already.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization as formats
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    secret = private.private_bytes(
        formats.Encoding.PEM, formats.PrivateFormat.PKCS8, formats.NoEncryption()
    )
    shown = public.public_bytes(formats.Encoding.PEM, formats.PublicFormat.SubjectPublicKeyInfo)
    for file, content, mode in (
        (path, secret, 0o600),
        (path.with_name(path.name + PUBLIC_SUFFIX), shown, 0o644),
    ):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:
            raise InvalidInput(f"{file} cannot be made: {error.strerror}", field="key") from error
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
    return _id_of(public)


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
    except (ValueError, UnsupportedAlgorithm):  # whose text might show what is in the file
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise InvalidInput(f"{path} has no private Ed25519 key in PEM", field="signing_key")
    return SigningKey(_id_of(private.public_key()), private)


def read_trusted_keys(path: Path) -> dict[str, TrustedKey]:
    """Return the public keys in a PEM file, one after the other, by id.

    Or in all files of a directory whose names do not begin with a dot. Raises InvalidInput for a
    file without one.
    """
    _require_cryptography()
    files = [path]
    if path.is_dir():
        found = sorted(path.iterdir())
        files = [one for one in found if one.is_file() and not one.name.startswith(".")]
    keys = {key.id: key for file in files for key in _trusted(file)}
    if not keys:
        raise InvalidInput(f"{path} has no public keys", field="trusted_keys")
    return keys


def _trusted(file: Path) -> list[TrustedKey]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read(file)
    if b"PRIVATE KEY" in content:
        raise InvalidInput(
            f"{file} has a private key; the public one, which keygen wrote beside it as "
            f"*{PUBLIC_SUFFIX}, is what to trust",
            field="trusted_keys",
        )
    found = []
    for block in _PUBLIC.findall(content) or [content]:
        try:
            public = load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm):
            public = None
        if not isinstance(public, Ed25519PublicKey):
            raise InvalidInput(f"{file} has no public Ed25519 key in PEM", field="trusted_keys")
        found.append(TrustedKey(_id_of(public), public))
    return found


def _id_of(public: Ed25519PublicKey) -> str:
    """Return the name of a key: the first 16 digits of its sha256. It says which key to try."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="key") from error


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401 - whether it is there is all that matters here
    except ImportError:
        raise InvalidInput(
            "signatures need the package cryptography: pip install 'topwork[signing]'", field="key"
        ) from None
