"""Signatures of a revision: manifest.sig, and the keys that are trusted.

A signature is Ed25519's over the very bytes of manifest.json. Since that names every other file of
the revision by sha256, and model and number besides, it covers all that is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from topwork.bundle import files
from topwork.bundle.documents import document, from_json, to_json
from topwork.bundle.signing.keys import SigningKey, TrustedKey, read_signing_key, read_trusted_keys
from topwork.errors import Corrupt, InvalidInput

FILE = "manifest.sig"
"""Beside manifest.json."""

KeyId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Signatures:
    """manifest.sig: what keys said of a manifest, each by its id."""

    signatures: dict[KeyId, bytes]
    """64 bytes each; Base64 in the file."""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """Whose signatures a repository asks for, and the key that it signs with."""

    trusted: Mapping[str, TrustedKey] = field(default_factory=dict)
    """By id; several, so that keys can follow each other. Empty: no signature is looked at."""
    required: bool = False
    """Whether a revision without a signature is refused; one with a wrong signature always is."""
    key: SigningKey | None = None

    def check(self, directory: Path, manifest: bytes) -> tuple[str, ...]:
        """Return the ids of the trusted keys that signed ``manifest``, that of a revision.

        Raises Corrupt if there is no signature and one is required, if none is a trusted key's, or
        if one that should be is wrong.
        """
        if not self.trusted:
            return ()
        path = directory / FILE
        shown = files.short_path(path)
        if not path.exists():
            if self.required:
                raise Corrupt(f"{shown} is missing: the revision is not signed", reason="UNSIGNED")
            return ()
        said = read(path).signatures
        known = sorted(said.keys() & self.trusted.keys())
        if not known:
            raise Corrupt(
                f"{shown} is of the keys {_listed(said)}, and trusted are {_listed(self.trusted)}",
                reason="SIGNATURE_UNTRUSTED",
            )
        for one in known:
            if not self.trusted[one].verifies(said[one], manifest):
                raise Corrupt(
                    f"{shown} has a wrong signature of the key {one}: it or manifest.json was "
                    "changed",
                    reason="SIGNATURE_INVALID",
                )
        return tuple(known)

    def sign(self, manifest: bytes) -> bytes | None:
        """Return what to write as manifest.sig; None without a key."""
        return None if self.key is None else add(self.key, manifest, Signatures(signatures={}))


UNSIGNED = Signing()
"""Signs nothing and asks for no signature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningFiles:
    """Where the keys lie; crosses process boundaries, which keys do not."""

    trusted_keys: Path | None = None
    require_signed: bool = False
    signing_key: Path | None = None

    def read(self, *, publishes: bool) -> Signing:
        """Return what the files say, for who also ``publishes`` or for who only reads.

        Raises InvalidInput if one cannot be read, or if what would be published would be refused.
        """
        if self.require_signed and self.trusted_keys is None:
            raise InvalidInput(
                "signatures are required, and no keys are trusted: give --trusted-keys",
                field="trusted_keys",
            )
        trusted = {} if self.trusted_keys is None else read_trusted_keys(self.trusted_keys)
        key = None if self.signing_key is None else read_signing_key(self.signing_key)
        if key is not None and trusted and key.id not in trusted:
            raise InvalidInput(
                f"the signing key {key.id} is not trusted; those that are: {_listed(trusted)}",
                field="signing_key",
            )
        if publishes and self.require_signed and key is None:
            raise InvalidInput(
                "signatures are required, and a worker has no key to sign with: give "
                "--signing-key, or --no-worker and let another one work",
                field="signing_key",
            )
        return Signing(
            trusted=trusted, required=self.require_signed, key=key if publishes else None
        )


NO_FILES = SigningFiles()


def read(path: Path) -> Signatures:
    """Return a manifest.sig. Raises Corrupt."""
    return from_json(files.read(path), Signatures, name=files.short_path(path))


def add(key: SigningKey, manifest: bytes, others: Signatures) -> bytes:
    """Return a manifest.sig with those of others and that of ``key``."""
    own = {key.id: key.sign(manifest)}
    return to_json(Signatures(signatures=dict(sorted({**others.signatures, **own}.items()))))


def _listed(keys: Mapping[str, object]) -> str:
    return ", ".join(sorted(keys)[:5]) or "none"
