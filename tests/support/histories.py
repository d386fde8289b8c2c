"""Random histories of changes, for the law that they equal one fit on what remains."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st

from topwork.bundle.comparison import Gate
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.changes.jobs import ChangeKind, ChangeResult, Job, Upload
from topwork.changes.retrain import Trainer
from topwork.limits import DEFAULT_LIMITS

LABELS = "abcd"
FIRST = "ab"
"""Labels of the first revision, with the examples 0 to 5 each."""
EXAMPLES = 10
"""Examples of each label that a history may use."""

LIMITS = replace(DEFAULT_LIMITS, min_images_per_label=3)
ANY = Gate(max_old_class_drop=1.0, min_new_class_recall=0.0)


def apply(
    repository: Repository,
    kind: ChangeKind,
    label: str = "",
    contents: Sequence[bytes] = (),
    digests: Sequence[str] = (),
    *,
    model: str,
) -> ChangeResult:
    """Run all steps of a change and return its result."""
    job = Job(
        kind=kind,
        model=model,
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


Name = tuple[str, int]
"""Label and number of an example."""


@dataclass(frozen=True)
class Step:
    """A change, and the examples of each label after it."""

    kind: ChangeKind
    label: str
    names: tuple[Name, ...]
    after: dict[str, frozenset[Name]]


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Return changes that leave at least two labels with at least three examples."""
    has = {label: {(label, number) for number in range(6)} for label in FIRST}
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        spare = sorted(label for label in has if len(has[label]) > 3)
        absent = sorted(set(LABELS) - has.keys())
        kinds: list[ChangeKind] = ["add_examples"]
        kinds += ["add_class"] if absent else []
        kinds += ["remove_class"] if len(has) > 2 else []
        kinds += ["move_examples", "remove_examples"] if spare else []
        kind = draw(st.sampled_from(kinds))
        names = set[Name]()
        if kind in {"add_class", "add_examples"}:
            label = draw(st.sampled_from(absent if kind == "add_class" else sorted(has)))
            least = 3 if kind == "add_class" else 1
            numbers = draw(st.sets(st.integers(0, EXAMPLES - 1), min_size=least, max_size=6))
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
                label = ""
            if any(len(members) < 3 for members in after.values()):
                continue
            has = after
        frozen = {name: frozenset(members) for name, members in has.items()}
        steps.append(Step(kind, label, tuple(sorted(names)), frozen))
    return steps


def check_equals_one_fit(
    history: list[Step],
    pool: Mapping[str, Sequence[bytes]],
    *,
    model: str,
    publish: Callable[[Repository, Mapping[str, Sequence[bytes]]], Manifest],
    digest: Callable[[bytes], str],
) -> None:
    """Check that labels, head and data digest after a history are those of one fit.

    ``pool`` has the contents of each label, ``publish`` fits a model on contents and lets it serve,
    ``digest`` is that of a content's exemplar.
    """
    with TemporaryDirectory() as directory:
        changed = Repository(Path(directory) / "changed")
        publish(changed, {label: pool[label][:6] for label in FIRST})
        for step in history:
            taken = [pool[label][number] for label, number in step.names]
            adds = step.kind in {"add_class", "add_examples"}
            apply(
                changed,
                step.kind,
                step.label,
                taken if adds else (),
                () if adds else [*map(digest, taken)],
                model=model,
            )
        if not history:
            return
        fitted = Repository(Path(directory) / "fitted")
        expected = publish(
            fitted,
            {
                label: [pool[own][number] for own, number in sorted(names)]
                for label, names in history[-1].after.items()
            },
        )
        found = changed.manifest(model, changed.serving(model))
        assert (found.labels, found.data_digest) == (expected.labels, expected.data_digest)
        assert changed.head(found) == fitted.head(expected)
