"""Conversion of review policies, candidates and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from topwork.bundle.candidates import CandidateReason, Listing
from topwork.bundle.manifest import Manifest
from topwork.bundle.review_policy import ReviewPolicy, checked
from topwork.errors import InvalidInput
from topwork.review.candidates import Group, Row
from topwork.review.labelling import Conditions, Decision
from topwork.rpc.convert import fields
from topwork.rpc.convert.answers import to_image_result
from topwork.rpc.convert.requests import from_gate
from topwork.v1 import change_pb2 as change_pb
from topwork.v1 import review_service_pb2 as review_pb

_REASONS: dict[CandidateReason, review_pb.CandidateReason.ValueType] = {
    "unknown": review_pb.CANDIDATE_REASON_UNKNOWN,
    "far": review_pb.CANDIDATE_REASON_FAR,
    "uncertain": review_pb.CANDIDATE_REASON_UNCERTAIN,
    "random": review_pb.CANDIDATE_REASON_RANDOM,
    "corrected": review_pb.CANDIDATE_REASON_CORRECTED,
}

SUFFIX = "/reviewPolicy"


def policy_model(name: str, *, field: str) -> str:
    """Return the model in a policy's resource name. Raises InvalidInput."""
    if not name.endswith(SUFFIX):
        raise InvalidInput(
            f"{name[:100]!r} must be a resource name, models/{{model}}{SUFFIX}",
            field=field,
            reason="RESOURCE_NAME_INVALID",
        )
    return fields.model_id(name.removesuffix(SUFFIX), field=field)


def from_policy(message: review_pb.ReviewPolicy, policy: ReviewPolicy) -> ReviewPolicy:
    """Return ``policy`` with the fields that a message sets. Raises InvalidInput."""
    names = (
        "enabled",
        "images_per_day",
        "max_bytes",
        "unknown",
        "far",
        "max_margin",
        "random_share",
    )
    set_fields = {field.name for field, _ in message.ListFields()}
    given = {name: getattr(message, name) for name in names if name in set_fields}
    if message.HasField("ttl"):
        given["keep_seconds"] = int(fields.seconds(message.ttl, field="policy.ttl"))
    return checked(replace(policy, **given))


def to_policy(
    model: str, policy: ReviewPolicy, listing: Listing, kept_today: int
) -> review_pb.ReviewPolicy:
    """Return the message of a policy, with what its model has kept."""
    return review_pb.ReviewPolicy(
        name=f"models/{model}{SUFFIX}",
        enabled=policy.enabled,
        images_per_day=policy.images_per_day,
        max_bytes=policy.max_bytes,
        ttl=fields.duration(policy.keep_seconds),
        unknown=policy.unknown,
        far=policy.far,
        max_margin=policy.max_margin,
        random_share=policy.random_share,
        candidates=len(listing.candidates),
        bytes=listing.size(),
        kept_today=kept_today,
    )


def to_candidate(
    manifest: Manifest, row: Row, policy: ReviewPolicy, *, preview: bool, image: bytes = b""
) -> review_pb.Candidate:
    """Return the message of a candidate."""
    candidate, record = row.candidate, row.candidate.record
    return review_pb.Candidate(
        name=f"models/{manifest.model}/candidates/{candidate.digest}",
        digest=candidate.digest,
        reason=_REASONS[record.reason],
        create_time=fields.timestamp(datetime.fromtimestamp(record.time, UTC)),
        expire_time=fields.timestamp(datetime.fromtimestamp(row.time + policy.keep_seconds, UTC)),
        revision=record.revision,
        answered_label=record.label,
        classification=to_image_result(row.answer).classification,
        usefulness=row.usefulness,
        suggested_label=record.suggested_label,
        operation=fields.operation_name(row.claim.operation) if row.claim is not None else "",
        label=row.claim.label if row.claim is not None else "",
        preview=candidate.preview if preview else b"",
        image=image,
        group=row.group,
    )


def to_group(
    manifest: Manifest, group: Group, policy: ReviewPolicy, *, examples: int
) -> review_pb.CandidateGroup:
    """Return the message of a group."""
    return review_pb.CandidateGroup(
        id=group.id,
        size=len(group.rows),
        unknown=group.unknown,
        nearest_label=group.nearest_label,
        similarity=group.similarity,
        known_similarity=group.known_similarity,
        examples=[
            to_candidate(manifest, replace(row, group=group.id), policy, preview=True)
            for row in group.rows[:examples]
        ],
    )


def from_labels(labels: Sequence[review_pb.CandidateLabel]) -> list[Decision]:
    """Return the decisions of a request. Raises InvalidInput."""
    decisions = []
    for place, message in enumerate(labels):
        path = f"labels[{place}]"
        digest = fields.digest(message.digest, field=f"{path}.digest")
        kind = message.WhichOneof("decision")
        if kind is None or (kind == "discard" and not message.discard):
            raise InvalidInput(
                f"candidate {digest[:12]} has neither a label nor discard = true", field=path
            )
        label = message.label if kind == "label" else None
        decisions.append(Decision(digest=digest, label=label))
    return decisions


def from_options(options: change_pb.ChangeOptions) -> Conditions:
    """Return the conditions of a request. Raises InvalidInput."""
    return Conditions(
        gate=from_gate(options.gate, path="options.gate"),
        expected_revision=fields.number(
            options.expected_revision, field="options.expected_revision"
        ),
        validate_only=options.validate_only,
    )
