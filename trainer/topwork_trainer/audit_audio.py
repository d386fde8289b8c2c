"""Audit of recordings: those that are much shorter than a window, or have a lower rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from topwork.bundle.findings import Finding, Severity
from topwork.errors import ImageError
from topwork.inputs.audio import AudioSpec
from topwork.inputs.data.photos import Photo
from topwork.inputs.sound_file import SoundHeader, read_header
from topwork.training.embed import Skipped
from topwork_trainer.audit_findings import (
    finding,
    left_out_findings,
    skipped_findings,
    too_few_images,
    usable_images,
)
from topwork_trainer.data import Photos

NOTE_SHORT = 0.5
"""Raising it notes more short recordings: the part of a window that is not padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Headed:
    recording: Photo
    header: SoundHeader


def audit_audio(photos: Photos, skipped: Sequence[Skipped], spec: AudioSpec) -> list[Finding]:
    """Return the findings about the training recordings that ``scan`` found, in a fixed order.

    ``skipped`` is the list that ``embed`` returned for them. The headers of all others are read.
    """
    skipped_names = {each.name for each in skipped}
    headed: list[_Headed] = []
    gone = []
    for recording in photos.train:
        if recording.name in skipped_names:
            continue
        try:
            headed.append(_Headed(recording=recording, header=read_header(recording.read())))
        except (OSError, ImageError) as error:
            message = f"{recording.name} was used but can no longer be read: {error}"
            gone.append(finding("unreadable", "error", message, [recording]))
    return [
        *gone,
        *skipped_findings(skipped, "sample by sample"),
        *too_few_images(usable_images(photos.train, skipped), "recording"),
        *_low_rate(headed, spec),
        *_short(headed, spec),
        *left_out_findings(photos.left_out),
    ]


def _low_rate(headed: Sequence[_Headed], spec: AudioSpec) -> Iterator[Finding]:
    low = [each for each in headed if each.header.rate < spec.rate]
    if low:
        worst = min(low, key=lambda each: (each.header.rate, each.recording.name))
        some = len(low) < len(headed)
        message = (
            f"{len(low)} of {len(headed)} recordings have a lower rate than the {spec.rate} Hz of "
            f"the encoder, so they lack high sounds; {worst.recording.name} has "
            f"{worst.header.rate} Hz"
        )
        more = ": the model may learn the recorder instead of the sound" if some else ""
        severity: Severity = "warning" if some else "note"
        yield finding("low_rate", severity, message + more, [each.recording for each in low])


def _short(headed: Sequence[_Headed], spec: AudioSpec) -> Iterator[Finding]:
    window = spec.window / spec.rate
    short = [each for each in headed if each.header.seconds < NOTE_SHORT * window]
    if short:
        worst = min(short, key=lambda each: (each.header.seconds, each.recording.name))
        message = (
            f"{len(short)} of {len(headed)} recordings are shorter than half of the window of "
            f"{window:g} s, and padded with silence; {worst.recording.name} has "
            f"{worst.header.seconds:.2f} s: a shorter --window may suit them"
        )
        yield finding("short", "note", message, [each.recording for each in short])
