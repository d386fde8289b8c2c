"""Changes of a model of audio: like those of images, byte for byte a fit on the same recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from support import histories, sounds
from support.histories import Step

from topwork.bundle.maintenance.check import check
from topwork.bundle.manifest import Manifest
from topwork.bundle.store import Repository
from topwork.inputs.audio import digest, prepare

POOL = {
    name: sounds.recordings(label, histories.EXAMPLES)
    for name, label in zip(histories.LABELS, sounds.LABELS, strict=False)
}


def publish(repository: Repository, given: Mapping[str, Sequence[bytes]]) -> Manifest:
    """Fit a model on recordings, and let it serve."""
    return sounds.publish(repository, "sounds", sounds.exemplars(given))


@pytest.mark.slow
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories.histories())
def test_history_of_changes_equals_one_fit(history: list[Step]) -> None:
    """Labels, head and data digest equal those of one fit on the remaining recordings."""
    histories.check_equals_one_fit(
        history,
        POOL,
        model="sounds",
        publish=publish,
        digest=lambda content: digest(prepare(content, sounds.SPEC)),
    )


def test_bad_recordings_are_skipped_with_the_reason(tmp_path: Path) -> None:
    """They are left out as unreadable images are; equal samples of another file are duplicates."""
    repository = sounds.repository(tmp_path)
    sound = sounds.samples("horn", 0)
    whole = np.round(sound * 2**15) / 2**15
    good = [sounds.encoded(whole), *sounds.recordings("horn", 5, first=1)]
    bad = [
        b"x",
        good[0][:-500],
        sounds.encoded(sound * 0),
        sounds.encoded(np.zeros(11 * sounds.RATE)),
        sounds.encoded(whole, kind="FLAC"),
    ]
    result = histories.apply(repository, "add_class", "horn", [*good, *bad], model="sounds")
    assert result.images_used == 6
    assert [(image.name, image.reason) for image in result.skipped] == [
        ("horn-6", "AUDIO_UNREADABLE"),
        ("horn-7", "AUDIO_UNREADABLE"),
        ("horn-8", "AUDIO_SILENT"),
        ("horn-9", "AUDIO_TOO_LARGE"),
        ("horn-10", "DUPLICATE"),
    ]
    assert result.skipped[4].message == "same samples as horn-0"


def test_repository_of_audio_is_sound(tmp_path: Path) -> None:
    """Fsck finds nothing wrong; previews are WAV files."""
    repository = sounds.repository(tmp_path)
    assert [problem.text for problem in check(repository) if problem.severity == "error"] == []
    manifest = repository.manifest("sounds", 1)
    found = repository.exemplars(manifest.exemplars)
    assert {preview[:4] for preview in found.thumbnails} == {b"RIFF"}
