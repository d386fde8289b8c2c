"""Audit of training inputs of any kind."""

from __future__ import annotations

from collections.abc import Sequence

from topwork.bundle.findings import Finding, skipped_image
from topwork.inputs.audio import AudioSpec
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.spec import InputSpec
from topwork.inputs.text import TextSpec
from topwork.training.embed import Skipped
from topwork_trainer.audit_audio import audit_audio
from topwork_trainer.audit_files import audit_files
from topwork_trainer.audit_texts import audit_texts
from topwork_trainer.data import Photos


def audit_inputs(photos: Photos, skipped: Sequence[Skipped], spec: InputSpec) -> list[Finding]:
    """Return the findings about training inputs, of which ``embed`` has left out ``skipped``."""
    if isinstance(spec, PreprocessSpec):
        return audit_files(photos, skipped, spec)
    if isinstance(spec, TextSpec):
        return audit_texts(photos, skipped, spec)
    if isinstance(spec, AudioSpec):
        return audit_audio(photos, skipped, spec)
    return [
        skipped_image(each.name, each.label, reason=each.reason, message=each.message)
        for each in skipped
    ]
