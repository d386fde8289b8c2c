"""Audit of texts: those that are cut off, and those that the tokenizer does not know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from topwork.bundle.findings import Finding, Severity
from topwork.errors import ImageError
from topwork.inputs.data.photos import Photo
from topwork.inputs.text import TextSpec, TokenCounts, count_tokens
from topwork.training.embed import Skipped
from topwork_trainer.audit_findings import (
    finding,
    left_out_findings,
    skipped_findings,
    too_few_images,
    usable_images,
)
from topwork_trainer.data import Photos

WARN_CUT = 0.1
"""Raising it warns less about long texts: the share of texts from which on a warning is given."""

WARN_UNKNOWN = 0.2
"""Raising it warns about fewer texts: the least share of unknown tokens of those that are meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    text: Photo
    counts: TokenCounts


def audit_texts(photos: Photos, skipped: Sequence[Skipped], spec: TextSpec) -> list[Finding]:
    """Return the findings about the training texts that ``scan`` found, in a fixed order.

    ``skipped`` is the list that ``embed`` returned for them. The tokens of all others are counted.
    """
    skipped_names = {each.name for each in skipped}
    counted: list[_Counted] = []
    gone = []
    for text in photos.train:
        if text.name in skipped_names:
            continue
        try:
            counted.append(_Counted(text=text, counts=count_tokens(text.read(), spec)))
        except (OSError, ImageError) as error:
            message = f"{text.name} was used but can no longer be read: {error}"
            gone.append(finding("unreadable", "error", message, [text]))
    return [
        *gone,
        *skipped_findings(skipped, "token by token"),
        *too_few_images(usable_images(photos.train, skipped), "text"),
        *_cut_off(counted, spec),
        *_unknown(counted),
        *left_out_findings(photos.left_out),
    ]


def _cut_off(counted: Sequence[_Counted], spec: TextSpec) -> Iterator[Finding]:
    long = [each for each in counted if each.counts.tokens > spec.max_tokens]
    if long:
        worst = max(long, key=lambda each: (each.counts.tokens, each.text.name))
        message = (
            f"{len(long)} of {len(counted)} texts have more than the {spec.max_tokens} tokens that "
            f"the encoder reads, and the rest is cut off; {worst.text.name} has "
            f"{worst.counts.tokens}"
        )
        severity: Severity = "warning" if len(long) >= WARN_CUT * len(counted) else "note"
        yield finding("cut_off", severity, message, [each.text for each in long])


def _unknown(counted: Sequence[_Counted]) -> Iterator[Finding]:
    odd = [each for each in counted if each.counts.unknown_share >= WARN_UNKNOWN]
    if odd:
        worst = max(odd, key=lambda each: (each.counts.unknown_share, each.text.name))
        message = (
            f"{len(odd)} of {len(counted)} texts have at least {100 * WARN_UNKNOWN:.0f} % tokens "
            f"that the tokenizer does not know; {worst.text.name} has "
            f"{100 * worst.counts.unknown_share:.0f} %: another language or alphabet?"
        )
        yield finding("unknown_tokens", "warning", message, [each.text for each in odd])
