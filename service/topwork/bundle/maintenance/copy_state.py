"""State of the models that a copy reads, and the conflicts with the models of its target."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from topwork.bundle import draft as drafts
from topwork.bundle.blobs import BlobStore
from topwork.bundle.documents import from_json
from topwork.bundle.draft import Draft
from topwork.bundle.evaluation_sets import DIRECTORY as SETS
from topwork.bundle.evaluation_sets import FILE as SET
from topwork.bundle.evaluation_sets import EvaluationSet, read_set, set_names
from topwork.bundle.maintenance.check import Problem
from topwork.bundle.manifest import Manifest
from topwork.bundle.model_directories import MODELS
from topwork.bundle.serving import FILE as SERVING
from topwork.bundle.serving import ServingState
from topwork.bundle.signing.signatures import UNSIGNED
from topwork.bundle.store import MANIFEST, Repository, read_manifest, revision_numbers
from topwork.errors import AlreadyExists, Corrupt, NotFound
from topwork.storage.storage import Storage, Unreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """A model at the time when the copy began.

    The serving pointer was read before the revisions were listed, so the list has the serving one.
    """

    model: str
    serving: ServingState | None
    """None: no revision serves, or serving.json is damaged."""
    serving_content: bytes
    is_draft: bool
    """True if it has no serving.json."""
    draft: Draft | None
    """None: it has none, or draft.json is damaged."""
    draft_content: bytes
    revisions: Mapping[int, Manifest]
    """The readable revisions."""
    numbers: frozenset[int]
    """The numbers of all revisions, readable or not."""
    sets: Mapping[str, EvaluationSet]
    """The readable evaluation sets."""
    problems: tuple[Problem, ...]
    """Damaged documents."""

    @property
    def directory(self) -> str:
        """The key of the directory of the model."""
        return f"{MODELS}/{self.model}"


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Convert the error of a file that cannot be read to Corrupt; raises Unreachable as it is."""
    try:
        yield
    except Unreachable:
        raise
    except OSError as error:
        raise Corrupt(str(error)) from error


def read_if_there(storage: Storage, key: str) -> bytes | None:
    """Return a file's bytes; None if it does not exist. Raises Corrupt."""
    with reading():
        return storage.read(key) if storage.exists(key) else None


def read_model(repository: Repository, model: str) -> ModelState:
    """Read the documents of a model. Raises NotFound."""
    storage, directory = repository.storage, f"{MODELS}/{model}"
    problems: list[Problem] = []

    @contextlib.contextmanager
    def problem_at(key: str) -> Iterator[None]:
        try:
            with reading():
                yield
        except Corrupt as error:
            problems.append(Problem(severity="error", path=key, text=str(error)))
        except NotFound:  # deleted meanwhile
            pass

    serving_key, draft_key = f"{directory}/{SERVING}", f"{directory}/{drafts.FILE}"
    serving = draft = None
    serving_content = draft_content = b""
    is_draft = not storage.exists(serving_key)
    with problem_at(serving_key):
        serving_content = read_if_there(storage, serving_key) or b""
        if serving_content:
            serving = from_json(serving_content, ServingState, name=serving_key)
    with problem_at(draft_key):
        draft_content = read_if_there(storage, draft_key) or b""
        if draft_content:
            draft = drafts.from_bytes(draft_content, UNSIGNED, name=draft_key)
    numbers = repository.revisions(model)
    revisions = {}
    for number in numbers:
        with problem_at(f"{directory}/{number}/{MANIFEST}"):
            revisions[number] = repository.manifest(model, number)
    sets = {}
    for name in set_names(storage, f"{directory}/{SETS}"):
        with problem_at(f"{directory}/{SETS}/{name}/{SET}"):
            sets[name], _ = read_set(storage, f"{directory}/{SETS}/{name}")
    return ModelState(
        model=model,
        serving=serving,
        serving_content=serving_content,
        is_draft=is_draft,
        draft=draft,
        draft_content=draft_content,
        revisions=revisions,
        numbers=frozenset(numbers),
        sets=sets,
        problems=tuple(problems),
    )


def check_model_free(source: Repository, state: ModelState, target: Repository) -> None:
    """Raise AlreadyExists if ``target`` has another model of the name, or has changed its copy.

    An earlier copy of the model is no conflict. Raises Corrupt if the target's documents that tell
    them apart are damaged.
    """
    target.check_not_deleted(state.model)
    storage = target.storage
    numbers = revision_numbers(storage, state.directory)
    for number in state.revisions.keys() & {*numbers}:
        key = f"{state.directory}/{number}/{MANIFEST}"
        content = read_if_there(source.storage, key)
        if content is not None and _is_other(storage, key, content):
            raise _conflict(state, f"its revision {number} has other content")
    if numbers and (
        numbers[-1] > max(state.numbers, default=0) or state.numbers.isdisjoint(numbers)
    ):
        raise _conflict(state, f"its revision {numbers[-1]} does not exist in the source")
    content = read_if_there(storage, target.serving_key(state.model))
    if content is not None:
        serving = from_json(content, ServingState, name=f"{storage}: {state.directory}/{SERVING}")
        if state.serving is not None:
            check_earlier(state, serving)
        elif state.is_draft:
            raise _conflict(state, "it serves, and that of the source does not")
    _check_draft(state, storage)
    for name, stored in state.sets.items():
        _check_set(state, name, stored, storage)


def check_earlier(state: ModelState, serving: ServingState) -> None:
    """Raise AlreadyExists unless the target's ``serving`` state is an earlier one of the source."""
    assert state.serving is not None, "it serves in the source"
    moves = state.serving.moves
    if serving.moves:
        is_earlier = serving.moves[-1] in moves
    else:
        is_earlier = serving.revision == (moves[0].previous if moves else state.serving.revision)
    if not is_earlier:
        raise _conflict(state, f"its revision {serving.revision} serves, with another history")


def check_backbones(source: BlobStore, digests: Collection[str], target: BlobStore) -> None:
    """Raise AlreadyExists if the target describes one of the source's backbones otherwise."""
    for digest in sorted(target.stored("backbones").keys() & set(digests)):
        key = f"{source.key('backbones', digest)}/backbone.json"
        with contextlib.suppress(Corrupt):  # in the source: the copy reports it
            own = source.storage.read(key)
            with contextlib.suppress(Corrupt):  # in the target: the copy repairs it
                if target.backbone_info(digest).digest == digest:
                    other = target.storage.read(key)
                    if own != other:
                        raise AlreadyExists(
                            f"the target describes the backbone {digest} otherwise: fit again "
                            "there, or copy into another repository",
                            kind="backbone",
                            resource=digest,
                        )


def check_names(names: Mapping[str, str], target: BlobStore) -> None:
    """Raise AlreadyExists if the target has another backbone of a name. Raises Corrupt."""
    others = target.added_backbones()
    for name, digest in names.items():
        if others.get(name, digest) != digest:
            raise AlreadyExists(
                f"the target has another backbone {name!r}, {others[name][:12]}",
                kind="backbone",
                resource=name,
            )


def _check_draft(state: ModelState, storage: Storage) -> None:
    """Raise AlreadyExists if the target's draft is of another model, or was changed there."""
    key = f"{state.directory}/{drafts.FILE}"
    content = read_if_there(storage, key)
    if content is None or content == state.draft_content:
        return
    if not state.draft_content:
        raise _conflict(state, "it has a draft, and that of the source has none")
    other = drafts.from_bytes(content, UNSIGNED, name=f"{storage}: {key}")
    own = state.draft
    if own is not None and (
        (other.created, other.backbone) != (own.created, own.backbone)
        or (other.operations and other.operations[-1] not in own.operations)
    ):
        raise _conflict(state, "it has another draft")


def _check_set(state: ModelState, name: str, stored: EvaluationSet, storage: Storage) -> None:
    """Raise AlreadyExists if the target has another evaluation set of the name."""
    directory = f"{state.directory}/{SETS}/{name}"
    if not storage.exists(directory):
        return
    with contextlib.suppress(Corrupt):  # the copy repairs it
        other, _ = read_set(storage, directory)
        if (other.created, other.images) != (stored.created, stored.images):
            raise _conflict(state, f"its evaluation set {name!r} has other content")


def _is_other(storage: Storage, key: str, content: bytes) -> bool:
    """Return True if the target has an intact manifest with other bytes."""
    with contextlib.suppress(Corrupt):
        if storage.read(key) == content:
            return False
        read_manifest(storage, key)
        return True
    return False


def _conflict(state: ModelState, difference: str) -> AlreadyExists:
    name = f"models/{state.model}"
    return AlreadyExists(
        f"the target has another model {name!r}, or has changed it: {difference}",
        kind="model",
        resource=name,
        reason="MODEL_EXISTS",
    )
