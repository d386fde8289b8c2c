"""Candidates: images that the review queue of a model keeps, one file each.

    models/<model>/review/<image digest>.npz    the image, its answer, its embedding, a thumbnail
    models/<model>/review/<image digest>.claim  the operation that learns it
    models/<model>/review/<image digest>.gone   empty: it was labelled or discarded

They lie in the model's directory, so that they are deleted and undeleted with it. A ``.gone`` has
the modification time of its candidate: it still counts as an image of that day, and the image is
not kept again until it would have expired. Nothing else remains of an image.
"""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from topwork.bundle import npz
from topwork.bundle.documents import document, from_json, to_json
from topwork.bundle.manifest import Digest
from topwork.bundle.model_directories import ModelDirectories
from topwork.bundle.numbers import Number
from topwork.errors import Corrupt, NotFound
from topwork.storage.files import sha256
from topwork.storage.storage import Entry, Storage

DIRECTORY = "review"

CandidateReason = Literal["unknown", "far", "uncertain", "random", "corrected"]
"""Why an image was kept."""

REASONS: tuple[CandidateReason, ...] = get_args(CandidateReason)

_NAME = re.compile(r"([0-9a-f]{64})\.(npz|claim|gone)")

_DTYPES = {
    "record": "|u1",
    "embedding": "<f2",
    "fingerprint": "|u1",
    "preview": "|u1",
    "image": "|u1",
}
"""Arrays of a file, the image last: a list does not read it."""

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRecord:
    """Facts about a candidate: why it was kept, and its answer then."""

    reason: CandidateReason
    time: float
    """Time of the answer, in seconds since 1970."""
    content: Digest
    """sha256 of the encoded image."""
    backbone: Digest
    """The backbone of the embedding."""
    revision: Number
    """The revision that answered."""
    label: str
    """Its most probable label."""
    probability: _Share
    margin: _Share
    """``probability`` less that of the second label."""
    unknown_probability: _Share | None
    is_unknown: bool
    suggested_label: str = ""
    """Label by a caller's correction; empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Candidate without its image."""

    digest: str
    """The image digest, in hexadecimal."""
    record: CandidateRecord
    embedding: NDArray[np.float16]
    """(D,)"""
    fingerprint: NDArray[np.uint8]
    """(32,)"""
    preview: bytes
    """A small JPEG file."""


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The operation that learns a candidate under a label."""

    operation: str
    label: str
    time: float
    """In seconds since 1970."""


@dataclass(slots=True)
class Listing:
    """Names in a model's directory of candidates, by image digest."""

    candidates: dict[str, Entry] = field(default_factory=dict)
    claims: dict[str, Entry] = field(default_factory=dict)
    gone: dict[str, Entry] = field(default_factory=dict)

    def size(self) -> int:
        """Return the bytes of all candidates."""
        return sum(stored.size for stored in self.candidates.values())


class CandidateStore:
    """The candidates of one model, for concurrent use by any number of processes.

    Writers hold the lock of the model's directory, so that they never write into the directory of
    a model that was deleted meanwhile.
    """

    def __init__(self, repository: ModelDirectories, model: str) -> None:
        self._repository = repository
        self._storage = repository.storage
        self.model = model
        self.directory = repository.model_key(model, DIRECTORY)

    def listing(self) -> Listing:
        """Return the names of all files. Raises OSError."""
        return list_directory(self._storage, self.directory)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of the model's directory. Raises NotFound, OSError."""
        with self._repository.locked(self.model):
            self._storage.make_directory(self.directory)
            yield

    def put(self, candidate: Candidate, image: bytes) -> bool:
        """Store a candidate durably, while ``writing``; return False if it exists, or is gone."""
        if self._storage.exists(self._key(candidate.digest)) or self.is_gone(candidate.digest):
            return False
        content = npz.encode(
            {
                "record": (_octets(to_json(candidate.record)), "|u1"),
                "embedding": (candidate.embedding, "<f2"),
                "fingerprint": (candidate.fingerprint, "|u1"),
                "preview": (_octets(candidate.preview), "|u1"),
                "image": (_octets(image), "|u1"),
            }
        )
        self._storage.write(self._key(candidate.digest), content)
        return True

    def replace(self, candidate: Candidate, image: bytes) -> None:
        """Store a candidate durably, while ``writing``, also if it exists or is gone."""
        for suffix in ("gone", "npz"):
            self._storage.delete(self._key(candidate.digest, suffix))
        self.put(candidate, image)

    def read(self, digest: str) -> Candidate:
        """Return a candidate. Raises NotFound, Corrupt, OSError."""
        return read_candidate(self._storage, self._existing(digest))

    def image(self, digest: str) -> bytes:
        """Return the encoded image. Raises NotFound, Corrupt, OSError."""
        candidate, image = read_with_image(self._storage, self._existing(digest))
        if sha256(image) != candidate.record.content:
            raise Corrupt(f"the image of candidate {digest} was changed")
        return image

    def claim(self, digest: str) -> Claim | None:
        """Return the claim of a candidate; None if there is none, or it is damaged."""
        key = self._key(digest, "claim")
        with contextlib.suppress(Corrupt):
            return from_json(self._storage.read(key), Claim, name=key)
        return None

    def set_claim(self, digest: str, claim: Claim) -> None:
        """Store the claim of a candidate durably, while ``writing``."""
        self._storage.write(self._key(digest, "claim"), to_json(claim))

    def release(self, digest: str) -> None:
        """Delete a claim, while ``writing``."""
        self._storage.delete(self._key(digest, "claim"))

    def retire(self, digest: str) -> bool:
        """Delete a candidate, while ``writing``; return False if there is none."""
        key = self._key(digest)
        entry = self._storage.entry(key)
        if entry is None:
            return False
        self._storage.write_at(self._key(digest, "gone"), b"", entry.time_ns)
        self._storage.delete(key)
        self.release(digest)
        return True

    def is_gone(self, digest: str) -> bool:
        """Return True if the candidate was labelled or discarded."""
        return self._storage.exists(self._key(digest, "gone"))

    def _key(self, digest: str, suffix: str = "npz") -> str:
        return f"{self.directory}/{digest}.{suffix}"

    def _existing(self, digest: str) -> str:
        key = self._key(digest)
        if not self._storage.exists(key):
            raise NotFound(
                f"model {self.model!r} has no candidate {digest}: it was labelled or discarded, "
                "has expired, or never existed",
                kind="candidate",
                resource=f"models/{self.model}/candidates/{digest}",
            )
        return key


def list_directory(storage: Storage, directory: str) -> Listing:
    """Return the names of all files in a directory of candidates; none if it does not exist."""
    listing = Listing()
    by_suffix = {"npz": listing.candidates, "claim": listing.claims, "gone": listing.gone}
    for name, entry in storage.files(directory).items():
        if match := _NAME.fullmatch(name):
            by_suffix[match[2]][match[1]] = entry
    return listing


def delete_expired(
    storage: Storage,
    directory: str,
    *,
    before: float,
    erase: Collection[str] = (),
    dry_run: bool = False,
    on_delete: Callable[[str, int], None] = lambda _key, _size: None,
) -> list[str]:
    """Delete all files older than ``before`` (seconds since 1970); return the candidates' digests.

    Also those of the image digests ``erase``. ``on_delete`` gets the key and size of each. Needs no
    lock: nobody writes to such a file.
    """
    listing, deleted = list_directory(storage, directory), []
    for stored, suffix in (
        (listing.candidates, ".npz"),
        (listing.claims, ".claim"),
        (listing.gone, ".gone"),
    ):
        for digest, file in sorted(stored.items()):
            if file.time >= before and digest not in erase:
                continue
            key = f"{directory}/{digest}{suffix}"
            on_delete(key, file.size)
            if not dry_run:
                storage.delete(key)
            if suffix == ".npz":
                deleted.append(digest)
    return deleted


def read_candidate(storage: Storage, key: str) -> Candidate:
    """Return the candidate in a file; its image is not read. Raises Corrupt, OSError."""
    return read_with_image(storage, key, with_image=False)[0]


def read_with_image(
    storage: Storage, key: str, *, with_image: bool = True
) -> tuple[Candidate, bytes]:
    """Return the candidate in a file with its encoded image. Raises Corrupt, OSError."""
    with storage.open(key) as file:
        try:
            arrays = _arrays(file, [*_DTYPES] if with_image else [*_DTYPES][:-1])
            record = from_json(arrays["record"].tobytes(), CandidateRecord, name=key)
            if arrays["fingerprint"].shape != (32,) or arrays["embedding"].ndim != 1:
                raise ValueError("its arrays have other shapes")
        except (OSError, Corrupt):
            raise
        except Exception as error:  # zipfile and NumPy raise many classes on damaged files
            raise Corrupt(f"{key} cannot be used: {error}") from error
    candidate = Candidate(
        digest=key.rpartition("/")[2].partition(".")[0],
        record=record,
        embedding=arrays["embedding"],
        fingerprint=arrays["fingerprint"],
        preview=arrays["preview"].tobytes(),
    )
    return candidate, arrays["image"].tobytes() if with_image else b""


def _arrays(file: io.BufferedIOBase, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Return copies of arrays: a file that is deleted must not survive in a mapping."""
    found = {}
    with zipfile.ZipFile(file) as archive:
        for name in names:
            with archive.open(f"{name}.npy") as member:
                version = np.lib.format.read_magic(member)
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
                if version != (1, 0) or fortran or dtype != np.dtype(_DTYPES[name]):
                    raise ValueError(f"{name} has dtype {dtype}, not {_DTYPES[name]}")
                found[name] = np.frombuffer(member.read(), dtype=dtype).reshape(shape)
    return found


def start_of_day(now: float) -> float:
    """Return the last midnight (UTC), in seconds since 1970."""
    return now - now % 86400


def _octets(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, dtype=np.uint8)
