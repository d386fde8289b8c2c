"""Creation, copy, deletion and undeletion of models, at once: they wait for no worker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from topwork.bundle.documents import from_json, to_json
from topwork.bundle.draft import Draft, not_ready
from topwork.bundle.manifest import BackboneInfo, Manifest, check_may_serve
from topwork.bundle.recipe import Recipe
from topwork.bundle.serving import FILE as SERVING
from topwork.bundle.serving import Move, ServingState
from topwork.bundle.signing.signatures import FILE as SIGNATURE
from topwork.bundle.signing.signatures import SigningFiles
from topwork.bundle.spaces import put_space
from topwork.bundle.store import MANIFEST, Repository, revision_key
from topwork.errors import AlreadyExists, Corrupt, InvalidInput, NotFound, NotReady, Unavailable
from topwork.inputs.embeddings import EmbeddingSpec
from topwork.storage import files
from topwork.storage.storage import Storage

log = structlog.get_logger(__name__)

COPY = "copy"
"""``Manifest.change`` of a copy, and the cause of its first move."""

_OWN_FILES = {MANIFEST, SIGNATURE}
"""Files that a copy of a revision does not share with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewModel:
    """A model to create."""

    name: str
    backbone: str = ""
    """Digest or name of a stored backbone. Empty: that of ``like``, or the only one."""
    like: str = ""
    """Model whose backbone it uses; empty: none."""
    space: EmbeddingSpec | None = None
    """Space of the embeddings that it takes; None: it uses a backbone."""
    seed: int = 0
    recipe: Recipe = Recipe()  # noqa: RUF009 # frozen, so it can be shared
    request_id: str = ""
    """Idempotency key; empty: none."""


class Lifecycle:
    """Makes and deletes models of one repository. Its methods block: call them in threads.

    They raise Unavailable if the disk is full or read-only.
    """

    def __init__(self, storage: Storage | Path, signing: SigningFiles, *, most: int) -> None:
        """Take the limit of models, ``most``. The signing key is read when it is needed."""
        self._storage = storage
        self._signing = signing
        self._most = most

    def create(self, new: NewModel) -> None:
        """Create a model without labels. The same request with the same id may be repeated.

        Raises AlreadyExists, NotFound (backbone, ``like``), InvalidInput, QuotaExceeded, and
        NotReady without the required signing key.
        """
        repository = self._publisher()
        wanted = asdict(new)
        if new.space is None:  # as earlier releases stored it
            del wanted["space"]
        request = files.sha256(to_json(wanted))
        if _made_before(repository, new.name, new.request_id, request):
            return
        if new.like:
            current = repository.current(new.like)
            backbone, info = current.backbone, current.backbone_info
        else:
            if new.space is not None:
                with _writing(new.name):
                    backbone = put_space(repository, new.space).digest
            else:
                backbone = _find_backbone(repository, new.backbone).digest
            info = repository.backbone_info_digest(backbone)
        draft = Draft(
            model=new.name,
            backbone=backbone,
            backbone_info=info,
            seed=new.seed,
            recipe=new.recipe,
            created=datetime.now(UTC),
            request_id=new.request_id,
            request=request,
        )
        with _writing(new.name):
            try:
                repository.new_model(draft, most=self._most)
            except AlreadyExists:  # a concurrent call
                if not _made_before(repository, new.name, new.request_id, request):
                    raise
            else:
                log.info("created", model=new.name, backbone=backbone)

    def copy(self, source: str, revision: int, name: str, *, request_id: str) -> None:
        """Create a model whose revision 1 is a copy of a revision (0: the serving one), and serves.

        Head, metrics, report and exemplars are the same bytes. Raises as ``create``, and NotReady
        if the revision was rejected or none serves.
        """
        repository = self._publisher()
        request = files.sha256(to_json([source, revision, name]))
        if _made_before(repository, name, request_id, request):
            return
        if not revision and repository.is_draft(source):
            raise not_ready(repository.draft(source))
        manifest = repository.manifest(source, revision or repository.serving(source))
        check_may_serve(manifest)
        now = datetime.now(UTC)
        draft = Draft(
            model=name,
            backbone=manifest.backbone,
            backbone_info=manifest.backbone_info,
            seed=manifest.seed,
            recipe=manifest.recipe,
            created=now,
            request_id=request_id,
            request=request,
            source=f"models/{source}/revisions/{manifest.revision}",
            exemplars=manifest.exemplars,
            images=manifest.images,
        )
        copied = replace(
            manifest,
            model=name,
            revision=1,
            parent=0,
            precision_gate=None,
            change=COPY,
            operation="",
            comparison=None,
            created=now,
        )
        with _writing(name):
            contents = _copied_files(repository, manifest, copied)
            try:
                repository.new_model(draft, contents, most=self._most)
            except AlreadyExists:  # a concurrent call
                if not _made_before(repository, name, request_id, request):
                    raise
            else:
                log.info("copied", model=name, source=draft.source)

    def delete(self, model: str) -> None:
        """Delete a model, so that ``undelete`` can restore it until gc. Raises NotFound."""
        with _writing(model):
            Repository(self._storage).delete_model(model)
        log.info("deleted", model=model)

    def undelete(self, model: str) -> None:
        """Restore a deleted model. Raises NotFound, AlreadyExists, QuotaExceeded."""
        with _writing(model):
            Repository(self._storage).undelete_model(model, most=self._most)
        log.info("undeleted", model=model)

    def _publisher(self) -> Repository:
        """Return the repository with the key that signs. Raises NotReady if that is missing."""
        try:
            return Repository(self._storage, self._signing.read(publishes=True))
        except InvalidInput as error:
            text = f"this server cannot sign a new model: {error}"
            raise NotReady(text, reason="NO_SIGNING_KEY") from error


def store_bundled_backbone(repository: Repository, directory: Path) -> None:
    """Store the backbone in ``directory`` if the repository has none, for the first models.

    Raises Corrupt if the backbone is damaged, Unavailable if it cannot be stored.
    """
    if repository.stored("backbones"):
        return
    path = directory / "backbone.json"
    info = from_json(files.read(path), BackboneInfo, name=str(path))
    model = files.read_verified(directory / "backbone.onnx", info.digest)
    try:
        repository.put_backbone(model, info)
        repository.add_backbone(info.name, info.digest)  # so that gc retains it
    except OSError as error:
        text = f"the bundled backbone cannot be stored: {error.strerror}"
        raise Unavailable(text, reason="STORAGE") from error
    log.info("bundled backbone stored", name=info.name, digest=info.digest)


def backbones(repository: Repository) -> list[tuple[BackboneInfo, int]]:
    """Return the readable backbones that models can be made with, and the bytes of their graphs.

    The fp32 twin of an int8 backbone is another backbone.
    """
    return [
        (info, sum(repository.storage.sizes([repository.backbone_key(info.digest)]).values()))
        for info in repository.backbones()
    ]


def _find_backbone(repository: Repository, wanted: str) -> BackboneInfo:
    """Return the backbone with a digest or name; the only one with a graph if ``wanted`` is empty.

    A name that it was added by precedes its own name.

    Raises NotFound, InvalidInput if several have the name, or if it is empty and there are several.
    """
    infos = repository.backbones()
    if wanted:
        digest = repository.added_backbones().get(wanted, wanted)
        found = [info for info in infos if info.digest == digest] or [
            info for info in infos if info.name == wanted
        ]
    else:
        twins = {info.twin for info in infos}
        found = [info for info in infos if info.digest not in twins and info.has_graph]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{info.name} {info.digest}" for info in found or infos) or "none"
    if found:
        which = (
            f"{len(found)} backbones have the name {wanted!r}" if wanted else "there are several"
        )
        raise InvalidInput(
            f"{which}; choose a digest: {known}", field="backbone", reason="BACKBONE_AMBIGUOUS"
        )
    raise NotFound(
        f"there is no backbone {wanted[:100]!r} in the repository; it has {known}"
        if wanted
        else "the repository has no backbone: topwork-train backbone add stores one",
        kind="backbone",
        resource=wanted[:100],
        reason="BACKBONE_NOT_FOUND",
    )


def _copied_files(repository: Repository, source: Manifest, copied: Manifest) -> dict[str, bytes]:
    """Return the files of a new model: revision 1, which shares most with ``source``, and serves.

    Raises Corrupt.
    """
    repository.metrics(source)
    repository.report(source)
    repository.head(source)
    storage, directory = repository.storage, revision_key(source)
    contents = {
        name: storage.read(f"{directory}/{name}")
        for name in sorted(storage.files(directory))
        if name not in _OWN_FILES
    }
    move = Move(revision=copied.revision, previous=0, why=COPY, operation="", time=copied.created)
    revision = repository.signed_files(copied, contents)
    return {
        **{f"{copied.revision}/{name}": content for name, content in revision.items()},
        SERVING: to_json(ServingState(revision=0).moved(move)),
    }


def _made_before(repository: Repository, model: str, request_id: str, request: str) -> bool:
    """Return True if a call with this request id made the model.

    Raises AlreadyExists if that call requested something else.
    """
    if not request_id:
        return False
    try:
        draft = repository.draft(model)
    except (NotFound, Corrupt):
        return False
    if draft.request_id != request_id:
        return False
    if draft.request != request:
        raise AlreadyExists(
            f"request_id {request_id!r} made {model!r} with other settings",
            kind="model",
            resource=f"models/{model}",
            reason="REQUEST_ID_REUSED",
        )
    return True


@contextlib.contextmanager
def _writing(model: str) -> Iterator[None]:
    """Convert the errors of a full or read-only disk to Unavailable."""
    try:
        yield
    except OSError as error:
        text = f"models/{model} cannot be written: {error.strerror}"
        raise Unavailable(text, reason="STORAGE") from error
