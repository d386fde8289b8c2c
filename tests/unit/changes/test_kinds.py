"""Changes of models of all kinds: byte for byte the same as a fit on the same inputs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import kinds
from support.kinds import KINDS, TEXT, Sample

from topwork.bundle.comparison import Gate
from topwork.bundle.maintenance.check import check
from topwork.bundle.maintenance.garbage import collect
from topwork.bundle.store import Repository
from topwork.changes.jobs import ChangeKind, ChangeResult, Job, Upload
from topwork.changes.retrain import Trainer
from topwork.errors import ImageError, NotReady
from topwork.export.model import export
from topwork.limits import DEFAULT_LIMITS

LIMITS = replace(DEFAULT_LIMITS, min_images_per_label=3)
ANY = Gate(max_old_class_drop=1.0, min_new_class_recall=0.0)
OWN = 6
"""Inputs of each of the two first labels at the beginning."""

each_kind = pytest.mark.parametrize("sample", KINDS, ids=kinds.name_of)


@cache
def pool(sample: Sample) -> dict[str, list[bytes]]:
    """Return ten inputs of each of four labels."""
    return {label: sample.contents(label, 10, 0) for label in sample.labels[:4]}


def apply(
    repository: Repository,
    sample: Sample,
    kind: ChangeKind,
    label: str = "",
    contents: Sequence[bytes] = (),
    digests: Sequence[str] = (),
) -> ChangeResult:
    """Run all steps of a change and return its result."""
    job = Job(
        kind=kind,
        model=sample.model,
        label=label,
        accepted=0.0,
        uploads=tuple(
            Upload(name=f"{label}-{number}", digest=repository.put_image(content), label="")
            for number, content in enumerate(contents)
        ),
        gate=ANY,
        digests=tuple(sorted(set(digests))),
    )
    trainer = Trainer(repository, cores=2, limits=LIMITS)
    operation = str(uuid.uuid4())
    candidate = trainer.solve(job, trainer.embed(job, lambda *_, **__: None), operation)
    assert candidate.rejected is None
    if candidate.published:
        trainer.serve(job, candidate.result.revision, operation)
    return candidate.result


Name = tuple[int, int]
"""Number of the label, and of the input."""


@dataclass(frozen=True)
class Step:
    """A change, and the inputs of each label after it."""

    kind: ChangeKind
    label: int | None
    names: tuple[Name, ...]
    after: dict[int, frozenset[Name]]


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Return changes that leave at least two labels with at least three inputs."""
    has = {label: {(label, number) for number in range(OWN)} for label in range(2)}
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        spare = sorted(label for label in has if len(has[label]) > 3)
        absent = sorted({*range(4)} - has.keys())
        choices: list[ChangeKind] = ["add_examples"]
        choices += ["add_class"] if absent else []
        choices += ["remove_class"] if len(has) > 2 else []
        choices += ["move_examples", "remove_examples"] if spare else []
        kind = draw(st.sampled_from(choices))
        names = set[Name]()
        label: int | None
        if kind in {"add_class", "add_examples"}:
            label = draw(st.sampled_from(absent if kind == "add_class" else sorted(has)))
            least = 3 if kind == "add_class" else 1
            numbers = draw(st.sets(st.integers(0, 9), min_size=least, max_size=6))
            names = {(label, number) for number in numbers}
            has.setdefault(label, set()).update(names)
        elif kind == "remove_class":
            label = draw(st.sampled_from(sorted(has)))
            del has[label]
        else:
            source = draw(st.sampled_from(spare))
            names = {draw(st.sampled_from(sorted(has[source])))}
            label = draw(st.sampled_from(sorted(has.keys() - {source})))
            after = {name: members - names for name, members in has.items()}
            if kind == "move_examples":
                after[label] |= names
            else:
                label = None
            if any(len(members) < 3 for members in after.values()):
                continue
            has = after
        frozen = {name: frozenset(members) for name, members in has.items()}
        steps.append(Step(kind, label, tuple(sorted(names)), frozen))
    return steps


@pytest.mark.slow
@each_kind
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories())
def test_history_of_changes_equals_one_fit(sample: Sample, history: list[Step]) -> None:
    """Labels, head and data digest equal those of one fit on the remaining inputs."""
    labels, inputs = sample.labels, pool(sample)
    with TemporaryDirectory() as directory:
        repository = Repository(Path(directory) / "changed")
        two = {label: inputs[label][:OWN] for label in labels[:2]}
        sample.publish(repository, sample.model, sample.exemplars(two))
        for step in history:
            taken = [inputs[labels[label]][number] for label, number in step.names]
            adds = step.kind in {"add_class", "add_examples"}
            apply(
                repository,
                sample,
                step.kind,
                "" if step.label is None else labels[step.label],
                taken if adds else (),
                () if adds else [*map(sample.digest, taken)],
            )
        if not history:
            return
        fitted = Repository(Path(directory) / "fitted")
        after = {
            labels[label]: [inputs[labels[own]][number] for own, number in sorted(names)]
            for label, names in history[-1].after.items()
        }
        expected = sample.publish(fitted, sample.model, sample.exemplars(after))
        found = repository.manifest(sample.model, repository.serving(sample.model))
        assert (found.labels, found.data_digest) == (expected.labels, expected.data_digest)
        assert repository.head(found) == fitted.head(expected)


@each_kind
def test_bad_inputs_are_skipped_with_the_reason(tmp_path: Path, sample: Sample) -> None:
    """A stored input that does not fit is left out, and so is a second copy."""
    repository = kinds.repository(tmp_path)
    label = sample.labels[4]
    good = sample.contents(label, 5, 0)
    result = apply(repository, sample, "add_class", label, [*good, sample.bad[0], good[0]])
    assert result.images_used == 5
    assert [(image.name, image.reason) for image in result.skipped] == [
        (f"{label}-5", sample.bad[1]),
        (f"{label}-6", "DUPLICATE"),
    ]
    assert sample.bad[2] in result.skipped[0].message
    assert result.skipped[1].message == f"{sample.kind.same} as {label}-0"


def test_repository_of_all_kinds_is_sound(tmp_path: Path) -> None:
    """Fsck finds nothing wrong, and gc keeps each backbone while a model has it."""
    repository = kinds.repository(tmp_path)
    assert [problem.text for problem in check(repository) if problem.severity == "error"] == []
    collect(repository, keep=1, spare_seconds=0)
    assert {info.name for info in repository.backbones()} == {sample.backbone for sample in KINDS}


@each_kind
def test_export_is_of_images_alone(tmp_path: Path, sample: Sample) -> None:
    """Others are an error with the reason, not a file that nothing can use."""
    repository = kinds.repository(tmp_path)
    if sample.name == "image":
        assert export(repository, sample.model).model
        return
    with pytest.raises(NotReady, match=f"model {sample.model!r} takes .*{sample.name}") as caught:
        export(repository, sample.model)
    assert caught.value.reason == "INPUT_KIND"


def test_texts_of_one_digest_differ_in_bytes() -> None:
    """Case and white space are no tokens; an unknown word is one."""
    first, second = TEXT.twins
    assert first != second
    assert TEXT.digest(first) == TEXT.digest(second)
    assert TEXT.digest(first) != TEXT.digest(b"salt the xyzzy")
    with pytest.raises(ImageError):
        TEXT.digest(TEXT.bad[0])
