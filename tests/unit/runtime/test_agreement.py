"""Check of a backbone: cosine of computed and expected embeddings."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support import tiny

from topwork.bundle.documents import from_json, to_json
from topwork.bundle.manifest import BackboneInfo, ExpectedEmbeddings
from topwork.runtime.agreement import (
    LEAST_AGREEMENT,
    UNUSABLE,
    expect,
    facts,
    is_off,
    least,
    measure,
    processor,
    replacement,
)
from topwork.runtime.backend import open_session

MODEL = tiny.backbone_model()
INFO = tiny.quantised_info(MODEL)
RUN = open_session(MODEL, output="embedding").run
NOT_FINITE = [np.nan, np.inf, -np.inf]


def zeros(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return zeros as the embeddings of a batch."""
    return np.zeros((len(batch), tiny.WIDTH), dtype=np.float32)


def test_same_machine_agrees_entirely() -> None:
    """The graph that gave the expected embeddings has the agreement 1, also after storage."""
    stored = from_json(to_json(INFO), BackboneInfo, name="it")
    assert stored == INFO
    assert measure(stored, RUN) == 1.0
    assert not is_off(1.0)


def test_saturated_embeddings_are_off() -> None:
    """Sums that end at a limit have other directions."""
    saturating = open_session(tiny.saturating_backbone_model(), output="embedding")
    found = measure(INFO, saturating.run)
    assert found is not None
    assert 0 < found < LEAST_AGREEMENT
    assert is_off(found)


@pytest.mark.parametrize("row", range(4))
def test_worst_image_counts(row: int) -> None:
    """One wrong embedding of four is enough, whichever it is."""
    calls = iter(range(4))

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        return -RUN(batch) if next(calls) == row else RUN(batch)

    assert measure(INFO, run) == pytest.approx(-1)


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_embeddings_that_are_not_finite_are_off(bad: float) -> None:
    """NaN and infinity give -1, which JSON and metrics can hold."""

    def run(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = RUN(batch)
        found[0, 3] = bad
        return found

    assert measure(INFO, run) == UNUSABLE
    assert is_off(UNUSABLE)


def test_embeddings_of_another_width_are_off() -> None:
    """A graph of another width is off."""
    assert measure(INFO, lambda batch: RUN(batch)[:, :40]) == UNUSABLE


def test_zero_embeddings_agree_with_zeros_only() -> None:
    """Zeros have no direction: they agree if zeros are expected."""
    expected = replace(INFO, expected=expect(zeros, tiny.SPEC))
    assert measure(expected, zeros) == 1.0
    assert measure(expected, RUN) == 0.0
    assert measure(INFO, zeros) == 0.0


@pytest.mark.parametrize(
    "expected",
    [
        None,
        ExpectedEmbeddings(images="noise-2", embeddings=b"\0" * 16),
        ExpectedEmbeddings(images="noise-1", embeddings=b""),
        ExpectedEmbeddings(images="noise-1", embeddings=b"\0" * 7),
        ExpectedEmbeddings(images="noise-1", embeddings=b"\0" * 3 * 4 * tiny.WIDTH),
    ],
    ids=["earlier release", "later release", "empty", "odd", "three rows"],
)
def test_backbone_without_usable_expectations_is_not_checked(
    expected: ExpectedEmbeddings | None,
) -> None:
    """An unknown agreement is None, and such a backbone runs."""
    info = replace(INFO, expected=expected)
    assert measure(info, RUN) is None
    assert not is_off(None)
    assert replacement(info, None) is None


def test_replacement_is_the_twin_of_a_backbone_that_is_off() -> None:
    """The twin has the same preprocessing and width, and nothing to check."""
    twin = replacement(INFO, 0.9)
    assert twin is not None
    assert (twin.digest, twin.precision) == (INFO.twin, "fp32")
    assert (twin.preprocess, twin.width) == (INFO.preprocess, INFO.width)
    assert (twin.twin, twin.expected) == (None, None)
    assert replacement(INFO, LEAST_AGREEMENT) is None
    assert replacement(replace(INFO, twin=None), 0.9) is None


def test_least_ignores_what_is_unknown() -> None:
    """The least of several sessions is that of those that were checked."""
    assert least([None, 0.9, 1.0]) == 0.9
    assert least([None, None]) is None


def test_facts_name_backbone_agreement_provider_and_processor() -> None:
    """The log's fields can be written as JSON, and have the error of the twin if there is one."""
    known = facts(INFO, INFO, 0.5, provider="CPUExecutionProvider", twin_error="it is missing")
    assert json.loads(json.dumps(known)) == known
    assert known.items() >= {
        ("name", "tiny"),
        ("agreement", 0.5),
        ("provider", "CPUExecutionProvider"),
        ("used", "int8"),
        ("twin_error", "it is missing"),
    }
    assert known["processor"]
    assert "twin_error" not in facts(INFO, INFO, 0.5, provider="")


def test_processor_is_the_name_or_the_architecture(tmp_path: Path) -> None:
    """Linux names the processor on x86; elsewhere the architecture is known."""
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: Fast: 3 GHz\nmodel name\t: Fast: 3 GHz\n")
    assert processor(path) == "Fast: 3 GHz"
    path.write_text("processor\t: 0\n")
    assert processor(path) == platform.machine()
    assert processor(tmp_path / "none") == platform.machine()
