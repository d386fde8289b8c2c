"""Conversion of explanations into messages."""

from __future__ import annotations

from topwork.inputs.image import Region
from topwork.rpc.convert.answers import to_classification, to_timings
from topwork.serving.explanation.evidence import Evidence
from topwork.serving.explanation.explainer import Explanation
from topwork.v1 import classifier_service_pb2 as classify_pb


def to_explain_response(explanation: Explanation) -> classify_pb.ExplainResponse:
    """Return the response to an Explain call."""
    manifest, explained = explanation.manifest, explanation.explained
    found, timings = explained.evidence, explanation.timings
    return classify_pb.ExplainResponse(
        revision=manifest.revision,
        classification=to_classification(explanation.answer),
        label=explained.label,
        map=None if found is None else _to_map(found, explanation.region),
        map_unavailable=explained.unavailable,
        neighbours=[
            classify_pb.Neighbour(
                name=f"models/{manifest.model}/examples/{neighbour.digest}",
                label=neighbour.label,
                display_name=neighbour.name,
                similarity=neighbour.similarity,
                preview=neighbour.preview,
            )
            for neighbour in explanation.neighbours
        ],
        timings=None if timings is None else to_timings(timings),
    )


def _to_map(found: Evidence, region: Region) -> classify_pb.EvidenceMap:
    rows, columns = found.map.shape
    left, top, right, bottom = region
    return classify_pb.EvidenceMap(
        rows=rows,
        columns=columns,
        values=found.map.ravel().tolist(),
        bias=found.bias,
        rest=found.rest,
        logit=found.logit,
        region=classify_pb.Region(left=left, top=top, right=right, bottom=bottom),
    )
