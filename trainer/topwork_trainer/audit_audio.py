"""Audit of recordings: those that are much shorter than a window, or have a lower rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from topwork.bundle.findings import Finding, Severity
from topwork.inputs.audio import AudioSpec
from topwork.inputs.sound_file import SoundHeader, read_header
from topwork.training.embed import Skipped
from topwork_trainer.audit_findings import (
    Measured,
    finding,
    left_out_findings,
    measure_used,
    skipped_findings,
    too_few_images,
    usable_images,
)
from topwork_trainer.data import Photos

NOTE_SHORT = 0.5
"""Raising it notes more short recordings: the part of a window that is not padding."""


def audit_audio(photos: Photos, skipped: Sequence[Skipped], spec: AudioSpec) -> list[Finding]:
    """Return the findings about the training recordings that ``scan`` found, in a fixed order.

    ``skipped`` is the list that ``embed`` returned for them. The headers of all others are read.
    """
    headed, gone = measure_used(photos, skipped, read_header)
    return [
        *gone,
        *skipped_findings(skipped, "sample by sample"),
        *too_few_images(usable_images(photos.train, skipped), "recording"),
        *_low_rate(headed, spec),
        *_short(headed, spec),
        *left_out_findings(photos.left_out),
    ]


def _low_rate(headed: Sequence[Measured[SoundHeader]], spec: AudioSpec) -> Iterator[Finding]:
    low = [each for each in headed if each.value.rate < spec.rate]
    if low:
        worst = min(low, key=lambda each: (each.value.rate, each.photo.name))
        some = len(low) < len(headed)
        message = (
            f"{len(low)} of {len(headed)} recordings have a lower rate than the {spec.rate} Hz of "
            f"the encoder, so they lack high sounds; {worst.photo.name} has "
            f"{worst.value.rate} Hz"
        )
        more = ": the model may learn the recorder instead of the sound" if some else ""
        severity: Severity = "warning" if some else "note"
        yield finding("low_rate", severity, message + more, [each.photo for each in low])


def _short(headed: Sequence[Measured[SoundHeader]], spec: AudioSpec) -> Iterator[Finding]:
    window = spec.window / spec.rate
    short = [each for each in headed if each.value.seconds < NOTE_SHORT * window]
    if short:
        worst = min(short, key=lambda each: (each.value.seconds, each.photo.name))
        message = (
            f"{len(short)} of {len(headed)} recordings are shorter than half of the window of "
            f"{window:g} s, and padded with silence; {worst.photo.name} has "
            f"{worst.value.seconds:.2f} s: a shorter --window may suit them"
        )
        yield finding("short", "note", message, [each.photo for each in short])
