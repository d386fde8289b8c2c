"""Copy of a repository to another storage, byte for byte, verified, resumable.

Blobs are written first, then the revisions that refer to them, then what refers to revisions, and
the serving pointer last: a server on the target never sees a model that lacks a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from topwork.bundle import draft as drafts
from topwork.bundle import examples, review_policy
from topwork.bundle.blobs import check_none
from topwork.bundle.documents import from_json, to_json
from topwork.bundle.evaluation_sets import DIRECTORY as SETS
from topwork.bundle.evaluation_sets import FILE as SET
from topwork.bundle.evaluation_sets import EvaluationSet, read_result, result_sizes
from topwork.bundle.maintenance.check import OnProgress, Problem
from topwork.bundle.maintenance.copy_blobs import BlobCopy, CopiedKind, Tally, put
from topwork.bundle.maintenance.copy_candidates import copy_candidates
from topwork.bundle.maintenance.copy_state import (
    ModelState,
    check_backbones,
    check_earlier,
    check_model_free,
    check_names,
    read_if_there,
    read_model,
    reading,
)
from topwork.bundle.manifest import Manifest
from topwork.bundle.model_directories import MODELS, read_policy
from topwork.bundle.names import is_model
from topwork.bundle.serving import FILE as SERVING
from topwork.bundle.serving import ServingState
from topwork.bundle.signing import signatures
from topwork.bundle.signing.signatures import Signatures
from topwork.bundle.store import MANIFEST, Repository, revision_key, revision_numbers
from topwork.errors import Corrupt, NotFound
from topwork.storage.files import sha256
from topwork.storage.storage import ABSENT, HIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """Result of ``copy``."""

    written: Mapping[CopiedKind, int]
    """Numbers of items by kind that were written, or would be in a dry run."""
    present: Mapping[CopiedKind, int]
    """Numbers of items that the target had already, verified."""
    size: int
    """Bytes written."""
    serving: Mapping[str, int]
    """The revision that serves in the target, by copied model."""
    problems: tuple[Problem, ...]
    """Errors: what is damaged, and what was not copied therefore. Notes: what was left out."""


def copy(
    source: Repository,
    target: Repository,
    *,
    models: Collection[str] = (),
    dry_run: bool = False,
    on_progress: OnProgress = lambda _done, _total: None,
) -> Copied:
    """Copy models, by default all, with everything that they refer to; return what was copied.

    Neither repository verifies signatures; those of revisions are copied, and added to those that
    the target has. Without ``models`` all backbones that were added by name are copied, too. Left
    out are deleted models, operations and claims of them, orphaned and foreign files. Nothing is
    deleted in the target, except for candidates that are gone in the source.

    Other processes may use both repositories. A repeated call copies what is new since, and moves
    the serving pointers forward. Raises, before anything is written: NotFound if there is no such
    model, AlreadyExists if the target has another model, backbone or evaluation set of a name.
    Raises OSError if the target cannot be written.
    """
    tally = Tally(on_progress=on_progress)
    states = []
    for model in sorted(set(models)) or source.model_names():
        with contextlib.ExitStack() as stack:
            if not models:
                stack.enter_context(contextlib.suppress(NotFound))  # deleted meanwhile
            states.append(read_model(source, model))
    if not models:
        _note_left_out(source, tally)
    for state in states:
        tally.problems += state.problems
        check_model_free(source, state, target)
    backbones = {manifest.backbone for state in states for manifest in state.revisions.values()}
    backbones |= {state.draft.backbone for state in states if state.draft is not None}
    names = _names(source, tally)
    if models:
        names = {name: digest for name, digest in names.items() if digest in backbones}
    backbones = _with_twins(source, backbones | set(names.values()))
    check_names(names, target)
    check_backbones(source, backbones, target)
    if not dry_run:
        with target.naming():  # makes the directory of models, without which it is no repository
            pass
    run = _Run(source, target, tally, dry_run=dry_run)
    run.copy_backbones(backbones, names)
    serving = {}
    for state in states:
        if revision := run.copy_model(state):
            serving[state.model] = revision
    return Copied(
        written=dict(tally.written),
        present=dict(tally.present),
        size=tally.size,
        serving=serving,
        problems=tuple(sorted(tally.problems, key=lambda problem: problem.severity)),
    )


class _Run:
    """One run of ``copy`` after its checks."""

    def __init__(
        self, source: Repository, target: Repository, tally: Tally, *, dry_run: bool
    ) -> None:
        self._source = source
        self._target = target
        self._tally = tally
        self._dry_run = dry_run
        self._blobs = BlobCopy(source, target, tally, dry_run=dry_run)

    def copy_backbones(self, digests: Collection[str], names: Mapping[str, str]) -> None:
        """Copy backbones, then the names of those that could be copied."""
        self._blobs.copy_backbones(digests)
        there = self._target.added_backbones()
        for name, digest in names.items():
            missing = self._blobs.missing(backbones=[digest], shards=[])
            if there.get(name) != digest and not missing and not self._dry_run:
                self._target.add_backbone(name, digest)

    def copy_model(self, state: ModelState) -> int:
        """Copy a model; return the revision that serves in the target, 0: none."""
        if not (state.revisions or state.draft_content or state.serving_content or state.sets):
            return 0
        self._tally.expect(len(state.revisions) + len(state.sets) + 1)
        if not self._dry_run:
            with self._target.naming():
                self._target.check_not_deleted(state.model)
                self._target.storage.make_directory(state.directory)
        copied = set()
        for number, manifest in sorted(state.revisions.items()):
            with self._problem_at(revision_key(manifest)):
                self._copy_revision(manifest)
                copied.add(number)
            self._tally.advance()
        for name, stored in state.sets.items():
            with self._problem_at(f"{state.directory}/{SETS}/{name}"):
                self._copy_set(f"{state.directory}/{SETS}/{name}", stored)
            self._tally.advance()
        copy_candidates(self._source, self._target, state, self._tally, dry_run=self._dry_run)
        serving = self._copy_documents(state, copied)
        self._tally.advance()
        return serving

    def _copy_revision(self, manifest: Manifest) -> None:
        """Copy a revision, or verify, repair and sign that of the target. Raises Corrupt."""
        shards = [ref.digest for ref in manifest.exemplars]
        self._blobs.copy_shards(shards)
        self._check_copied([manifest.backbone], shards)
        key, storage = revision_key(manifest), self._target.storage
        if not storage.exists(key):
            contents = self._revision_files(manifest)
            if not self._dry_run:
                check_none(storage.refresh(self._references(manifest)))
                with self._target.locked(manifest.model):
                    storage.create(key, contents)
            self._tally.count("revision", sum(map(len, contents.values())))
            return
        size = 0
        damaged = [
            name
            for name, digest in _digests(manifest).items()
            if not self._is_intact(f"{key}/{name}", digest)
        ]
        with reading():
            content = self._source.storage.read(f"{key}/{MANIFEST}")
        if damaged:
            contents = self._revision_files(manifest)
            for name in damaged:
                size += put(storage, f"{key}/{name}", contents[name], dry_run=self._dry_run) or 0
        size += self._sign(key) or 0
        size += put(storage, f"{key}/{MANIFEST}", content, dry_run=self._dry_run) or 0
        self._tally.count("revision", size or None)

    def _revision_files(self, manifest: Manifest) -> dict[str, bytes]:
        """Return the verified files of a revision, the manifest last. Raises Corrupt."""
        storage, key = self._source.storage, revision_key(manifest)
        contents = {}
        with reading():
            self._source.backbone(manifest)
            for name, digest in _digests(manifest).items():
                contents[name] = storage.read_verified(f"{key}/{name}", digest)
            content = storage.read(f"{key}/{MANIFEST}")
        signature = self._signature(key)
        if signature is not None:
            contents[signatures.FILE] = signature
        return {**contents, MANIFEST: content}

    def _signature(self, key: str) -> bytes | None:
        """Return the source's signatures of a revision; None if it has none. Raises Corrupt."""
        file = f"{key}/{signatures.FILE}"
        content = read_if_there(self._source.storage, file)
        if content is not None:
            from_json(content, Signatures, name=file)
        return content

    def _sign(self, key: str) -> int | None:
        """Add the source's signatures to those of the target; return the bytes written."""
        content = self._signature(key)
        if content is None:
            return None
        storage, file = self._target.storage, f"{key}/{signatures.FILE}"
        added = from_json(content, Signatures, name=file).signatures
        with contextlib.suppress(Corrupt):  # missing, or damaged
            there = from_json(storage.read(file), Signatures, name=file).signatures
            if not there.keys() <= added.keys():
                content = to_json(Signatures(signatures=dict(sorted({**there, **added}.items()))))
        return put(storage, file, content, dry_run=self._dry_run)

    def _copy_set(self, key: str, stored: EvaluationSet) -> None:
        """Copy an evaluation set with its results. Raises Corrupt."""
        shards = [ref.digest for embedded in stored.embedded for ref in embedded.shards]
        self._blobs.copy_shards(shards)
        self._blobs.copy_images([image.content for image in stored.images])
        self._check_copied([], shards)
        source, target = self._source.storage, self._target.storage
        contents = {}
        with reading():
            contents[SET] = source.read(f"{key}/{SET}")
        for revision in result_sizes(source, key):
            name = f"{revision}.json"
            with self._problem_at(f"{key}/{name}"), reading():
                read_result(source, f"{key}/{name}")
                contents[name] = source.read(f"{key}/{name}")
        size = 0
        if not target.exists(key):
            content = contents.pop(SET)
            size += len(content)
            if not self._dry_run:
                check_none(target.refresh([self._target.key("exemplars", each) for each in shards]))
                with self._target.locked(stored.model):
                    target.create(key, {SET: content})
        for name, content in contents.items():
            size += put(target, f"{key}/{name}", content, dry_run=self._dry_run) or 0
        self._tally.count("evaluation", size or None)

    def _copy_documents(self, state: ModelState, copied: Collection[int]) -> int:
        """Copy review policy, draft and serving pointer; return the serving revision, 0: none."""
        documents: dict[str, bytes] = {}
        policy_key = f"{state.directory}/{review_policy.FILE}"
        with self._problem_at(policy_key), reading():
            read_policy(self._source.storage, state.directory)
            policy = read_if_there(self._source.storage, policy_key)
            if policy is not None:
                documents[review_policy.FILE] = policy
        serving = state.serving.revision if state.serving is not None else 0
        serves = serving in copied
        if serving and not serves:
            key = f"{state.directory}/{SERVING}"
            text = f"the serving revision {serving} was not copied, so the pointer was not"
            self._tally.fail(key, text)
        if state.draft is not None and (serves or (state.is_draft and self._draft_is_whole(state))):
            documents[drafts.FILE] = state.draft_content
        size = 0
        with contextlib.ExitStack() as stack:
            if not self._dry_run:
                stack.enter_context(self._target.locked(state.model))
            for name, content in documents.items():
                key = f"{state.directory}/{name}"
                size += put(self._target.storage, key, content, dry_run=self._dry_run) or 0
            if serves:
                size += self._move_pointer(state, copied) or 0
        self._tally.count("model", size or None)
        return serving if serves else 0

    def _draft_is_whole(self, state: ModelState) -> bool:
        """Copy what a draft refers to; return False if a part of it is damaged."""
        draft = state.draft
        assert draft is not None, "it has a draft"
        with self._problem_at(f"{state.directory}/{drafts.FILE}"):
            shards = [ref.digest for ref in draft.exemplars]
            self._blobs.copy_shards(shards)
            self._check_copied([draft.backbone], shards)
            with reading():
                self._source.backbone(draft)
            if not self._dry_run:
                check_none(self._target.storage.refresh(self._references(draft)))
            return True
        return False

    def _move_pointer(self, state: ModelState, copied: Collection[int]) -> int | None:
        """Write the serving pointer of the target; return the bytes written, None: it was there.

        Raises AlreadyExists if it moved meanwhile, Stale if it moves now.
        """
        assert state.serving is not None, "it serves"
        key, storage = self._target.serving_key(state.model), self._target.storage
        content, tag = state.serving_content, ABSENT
        there = {*copied, *revision_numbers(storage, state.directory)}
        pinned = tuple(revision for revision in state.serving.pinned if revision in there)
        if pinned != state.serving.pinned:
            content = to_json(replace(state.serving, pinned=pinned))
        if storage.exists(key):
            before, tag = storage.read_tagged(key)
            if before == content:
                return None
            check_earlier(state, from_json(before, ServingState, name=key))
        if not self._dry_run:
            storage.write(key, content, expected=tag)
        return len(content)

    def _check_copied(self, backbones: Collection[str], shards: Collection[str]) -> None:
        """Raise Corrupt if one of these blobs could not be copied."""
        if missing := self._blobs.missing(backbones=backbones, shards=shards):
            raise Corrupt(f"not copied: it refers to {', '.join(missing[:3])}")

    def _references(self, current: Manifest | drafts.Draft) -> list[str]:
        key = self._target.key
        shards = {ref.digest for ref in current.exemplars}
        return [key("backbones", current.backbone), *(key("exemplars", each) for each in shards)]

    def _is_intact(self, key: str, digest: str) -> bool:
        with contextlib.suppress(Corrupt):
            return sha256(self._target.storage.read(key)) == digest
        return False

    @contextlib.contextmanager
    def _problem_at(self, key: str) -> Iterator[None]:
        """Count damage as an error, unless the source deleted it meanwhile."""
        try:
            yield
        except Corrupt as error:
            if self._source.storage.exists(key):
                self._tally.fail(key, str(error))


def _digests(manifest: Manifest) -> dict[str, str]:
    """Return the sha256 of the files of a revision by name."""
    found = {
        "head.onnx": manifest.head,
        "metrics.json": manifest.metrics,
        "report.html": manifest.report,
    }
    return found if manifest.examples is None else {**found, examples.FILE: manifest.examples}


def _names(source: Repository, tally: Tally) -> dict[str, str]:
    """Return the digests of the backbones that were added by name; none if they are unreadable."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(reading())
            return source.added_backbones()
        except Corrupt as error:
            tally.fail("backbones/names.json", str(error))
    return {}


def _with_twins(source: Repository, backbones: Collection[str]) -> set[str]:
    """Return backbones with those of their fp32 twins that are stored."""
    found = set(backbones)
    stored = source.stored("backbones").keys()
    for digest in sorted(found & stored):
        with contextlib.suppress(Corrupt, OSError):  # the copy reports it
            twin = source.backbone_info(digest).twin
            if twin in stored:
                found.add(twin)
    return found


def _note_left_out(source: Repository, tally: Tally) -> None:
    """Add a note for each directory of models that is not copied."""
    for name in source.storage.directories(MODELS):
        if name.startswith(HIDDEN):
            text = "the model was deleted: it is left out"
        elif not is_model(name):
            text = "the name is not a valid model name: it is left out"
        else:
            continue
        tally.problems.append(Problem(severity="note", path=f"{MODELS}/{name}", text=text))
