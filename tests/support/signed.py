"""New signing keys for tests."""

from __future__ import annotations

from pathlib import Path

from topwork.bundle.signing import keys
from topwork.bundle.signing.signatures import Signing, SigningFiles


def new_key(directory: Path, name: str = "key") -> Path:
    """Return the file of a new private key; the public key is beside it."""
    path = directory / name
    keys.generate(path)
    return path


def public(key: Path) -> Path:
    """Return the file of the public key of a private other."""
    return key.with_name(f"{key.name}.pub")


def signing(
    key: Path | None = None, *trusted: Path, required: bool = True, publishes: bool = True
) -> Signing:
    """Return a Signing that signs with ``key`` and trusts the public keys of ``trusted``."""
    path = None
    if trusted:
        path = trusted[0].parent / f"trusted-{'-'.join(other.name for other in trusted)}.pem"
        path.write_bytes(b"".join(public(other).read_bytes() for other in trusted))
    files = SigningFiles(
        trusted_keys=path, require_signed=required and path is not None, signing_key=key
    )
    return files.read(publishes=publishes)
