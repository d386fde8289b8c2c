"""Signatures of a revision: the file manifest.sig, and its verification with trusted keys.

An Ed25519 signature covers the bytes of manifest.json. The manifest has the model, the revision
and the sha256 of all other files, so the signature covers everything that is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from topwork.bundle.documents import document, from_json, to_json
from topwork.bundle.signing.keys import SigningKey, TrustedKey, read_signing_key, read_trusted_keys
from topwork.errors import Corrupt, InvalidInput
from topwork.storage.storage import Storage

FILE = "manifest.sig"
"""File name, next to manifest.json."""

KeyId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}\Z")]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Signatures:
    """Content of manifest.sig: signatures of a manifest by key id."""

    signatures: dict[KeyId, bytes]
    """64 bytes each; Base64 in the file."""
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Signing:
    """Keys of a repository: trusted keys that verify revisions, and the key that signs them."""

    trusted: Mapping[str, TrustedKey] = field(default_factory=dict)
    """Public keys by id, several during key rotation. Empty: signatures are not verified."""
    required: bool = False
    """True if unsigned revisions are refused; revisions with an invalid signature always are."""
    key: SigningKey | None = None

    def check(self, storage: Storage, directory: str, manifest: bytes) -> tuple[str, ...]:
        """Verify the manifest of a revision; return the ids of the trusted keys that signed it.

        Raises Corrupt if a required signature is missing, if no trusted key has signed, or if a
        trusted key's signature is invalid.
        """
        if not self.trusted:
            return ()
        key = f"{directory}/{FILE}"
        if storage.exists(key):
            return self.check_signatures(read(storage, key), manifest, name=key)
        if self.required:
            raise Corrupt(f"{key} is missing: the revision is not signed", reason="UNSIGNED")
        return ()

    def check_signatures(
        self, signatures: Signatures | None, content: bytes, *, name: str
    ) -> tuple[str, ...]:
        """Verify signatures (None: there are none) of any ``content``; see ``check``.

        ``name`` is that of their file, for errors.
        """
        if not self.trusted:
            return ()
        if signatures is None:
            if self.required:
                raise Corrupt(f"{name} is not signed", reason="UNSIGNED")
            return ()
        found = signatures.signatures
        trusted = sorted(found.keys() & self.trusted.keys())
        if not trusted:
            raise Corrupt(
                f"{name} is signed by {_list_ids(found)}, but the trusted keys are "
                f"{_list_ids(self.trusted)}",
                reason="SIGNATURE_UNTRUSTED",
            )
        for key in trusted:
            if not self.trusted[key].verifies(found[key], content):
                raise Corrupt(
                    f"{name} has an invalid signature of {key}: it or what it signs was changed",
                    reason="SIGNATURE_INVALID",
                )
        return tuple(trusted)

    def sign(self, manifest: bytes) -> bytes | None:
        """Return the content of manifest.sig; None without a signing key."""
        signed = self.signatures_of(manifest)
        return None if signed is None else to_json(signed)

    def signatures_of(self, content: bytes) -> Signatures | None:
        """Return the signature of any ``content``; None without a signing key."""
        return None if self.key is None else _signed(self.key, content, Signatures(signatures={}))


UNSIGNED = Signing()
"""Neither signs nor verifies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningFiles:
    """Paths of the key files; passed between processes instead of the keys."""

    trusted_keys: Path | None = None
    require_signed: bool = False
    signing_key: Path | None = None

    def read(self, *, publishes: bool) -> Signing:
        """Read the keys; the signing key only for a process that ``publishes``.

        Raises InvalidInput if a file cannot be read, or if published revisions would be refused.
        """
        if self.require_signed and self.trusted_keys is None:
            raise InvalidInput(
                "signatures are required, but no keys are trusted: give --trusted-keys",
                field="trusted_keys",
            )
        trusted = {} if self.trusted_keys is None else read_trusted_keys(self.trusted_keys)
        key = None if self.signing_key is None else read_signing_key(self.signing_key)
        if key is not None and trusted and key.id not in trusted:
            raise InvalidInput(
                f"the signing key {key.id} is not one of the trusted keys {_list_ids(trusted)}",
                field="signing_key",
            )
        if publishes and self.require_signed and key is None:
            raise InvalidInput(
                "signatures are required, but the worker has no signing key: give --signing-key, "
                "or --no-worker and run a worker elsewhere",
                field="signing_key",
            )
        return Signing(
            trusted=trusted, required=self.require_signed, key=key if publishes else None
        )


def read(storage: Storage, key: str) -> Signatures:
    """Read a manifest.sig. Raises Corrupt."""
    return from_json(storage.read(key), Signatures, name=key)


def add(key: SigningKey, manifest: bytes, others: Signatures) -> bytes:
    """Return the content of manifest.sig with the signatures of ``others`` and of ``key``."""
    return to_json(_signed(key, manifest, others))


def _signed(key: SigningKey, content: bytes, others: Signatures) -> Signatures:
    own = {key.id: key.sign(content)}
    return Signatures(signatures=dict(sorted({**others.signatures, **own}.items())))


def _list_ids(keys: Mapping[str, object]) -> str:
    return ", ".join(sorted(keys)[:5]) or "none"
