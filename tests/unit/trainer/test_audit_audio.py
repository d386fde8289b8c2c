"""Audit of recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support import sounds
from support.sounds import RATE, encoded, samples

from topwork.runtime.backend import open_session
from topwork.training.embed import embed
from topwork_trainer.audit_inputs import audit_inputs
from topwork_trainer.data import scan


def test_findings_speak_of_recordings(tmp_path: Path) -> None:
    """Rates, lengths, copies, silence and files that are no audio, each with an example."""
    for label in ("bell", "bird"):
        (tmp_path / label).mkdir()
        for number, file in enumerate(sounds.recordings(label, 6)):
            (tmp_path / label / f"{number}.wav").write_bytes(file)
    sound = np.round(samples("bell", 50) * 2**15) / 2**15
    for name, file in {
        "copy-1.wav": encoded(sound),
        "copy-2.flac": encoded(sound, kind="FLAC"),
        "low.wav": encoded(samples("bell", 51)[::2], rate=RATE // 2),
        "short.wav": encoded(samples("bell", 52)[:900]),
        "silent.wav": encoded(np.zeros(RATE)),
        "long.wav": encoded(np.ones(11 * RATE)),
    }.items():
        (tmp_path / "bell" / name).write_bytes(file)
    photos = scan(tmp_path)
    assert photos.kind == "audio"
    session = open_session(sounds.encoder_model(), output="embedding")
    _, skipped = embed(photos.train, session, sounds.SPEC, cores=1)
    found = {each.kind: each for each in audit_inputs(photos, skipped, sounds.SPEC)}
    assert found.keys() == {"unreadable", "too_large", "exact_duplicate", "low_rate", "short"}
    assert "is silent" in found["unreadable"].message
    assert "lasts 11.0 s" in found["too_large"].message
    assert "repeat others sample by sample" in found["exact_duplicate"].message
    low, short = found["low_rate"], found["short"]
    assert low.severity == "warning"
    assert "1 of 15 recordings have a lower rate than the 8000 Hz" in low.message
    assert "low.wav has 4000 Hz" in low.message
    assert "1 of 15 recordings are shorter than half of the window of 0.5 s" in short.message
    assert "short.wav has 0.11 s" in short.message


def test_a_rate_that_all_have_is_a_note(tmp_path: Path) -> None:
    """There is nothing that the model could confuse with the sound."""
    for label in ("bell", "bird"):
        (tmp_path / label).mkdir()
        for number in range(5):
            file = encoded(samples(label, number), rate=RATE // 2)
            (tmp_path / label / f"{number}.wav").write_bytes(file)
    (found,) = audit_inputs(scan(tmp_path), [], sounds.SPEC)
    assert (found.kind, found.severity) == ("low_rate", "note")
