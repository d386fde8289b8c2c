"""Audit of texts: those that are cut off, and those that the tokenizer does not know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from topwork.bundle.findings import Finding, Severity
from topwork.inputs.text import TextSpec, TokenCounts, count_tokens
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

WARN_CUT = 0.1
"""Raising it warns less about long texts: the share of texts from which on a warning is given."""

WARN_UNKNOWN = 0.2
"""Raising it warns about fewer texts: the least share of unknown tokens of those that are meant."""


def audit_texts(photos: Photos, skipped: Sequence[Skipped], spec: TextSpec) -> list[Finding]:
    """Return the findings about the training texts that ``scan`` found, in a fixed order.

    ``skipped`` is the list that ``embed`` returned for them. The tokens of all others are counted.
    """
    counted, gone = measure_used(photos, skipped, lambda content: count_tokens(content, spec))
    return [
        *gone,
        *skipped_findings(skipped, "token by token"),
        *too_few_images(usable_images(photos.train, skipped), "text"),
        *_cut_off(counted, spec),
        *_unknown(counted),
        *left_out_findings(photos.left_out),
    ]


def _cut_off(counted: Sequence[Measured[TokenCounts]], spec: TextSpec) -> Iterator[Finding]:
    long = [each for each in counted if each.value.tokens > spec.max_tokens]
    if long:
        worst = max(long, key=lambda each: (each.value.tokens, each.photo.name))
        message = (
            f"{len(long)} of {len(counted)} texts have more than the {spec.max_tokens} tokens that "
            f"the encoder reads, and the rest is cut off; {worst.photo.name} has "
            f"{worst.value.tokens}"
        )
        severity: Severity = "warning" if len(long) >= WARN_CUT * len(counted) else "note"
        yield finding("cut_off", severity, message, [each.photo for each in long])


def _unknown(counted: Sequence[Measured[TokenCounts]]) -> Iterator[Finding]:
    odd = [each for each in counted if each.value.unknown_share >= WARN_UNKNOWN]
    if odd:
        worst = max(odd, key=lambda each: (each.value.unknown_share, each.photo.name))
        message = (
            f"{len(odd)} of {len(counted)} texts have at least {100 * WARN_UNKNOWN:.0f} % tokens "
            f"that the tokenizer does not know; {worst.photo.name} has "
            f"{100 * worst.value.unknown_share:.0f} %: another language or alphabet?"
        )
        yield finding("unknown_tokens", "warning", message, [each.photo for each in odd])
