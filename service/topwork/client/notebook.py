"""HTML of results, which notebooks such as Jupyter show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from topwork.v1 import revision_pb2 as revision_pb


def prediction_table(rows: Sequence[tuple[str, float]], note: str = "") -> str:
    """Return a table of labels with their probabilities, 0..1, and a note below it."""
    lines = "".join(
        f"<tr><td>{escape(label)}</td><td>{probability:.3f}</td>"
        f'<td><meter value="{probability:.4f}" aria-label="probability"></meter></td></tr>'
        for label, probability in rows
    )
    return f"<table>{lines}</table>" + (f"<p>{escape(note)}</p>" if note else "")


def comparison_table(comparison: revision_pb.Comparison) -> str:
    """Return a table that compares a revision with its parent."""
    drop = f"{comparison.drop:.3f} ({comparison.drop_low:.3f} to {comparison.drop_high:.3f})"
    rows = [
        ("accuracy on the old labels", comparison.accuracy_before, comparison.accuracy_after),
        *(
            (f"recall of {label.label}", label.recall_before, label.recall_after)
            for label in comparison.labels
        ),
    ]
    lines = [(name, f"{before:.3f}", f"{after:.3f}") for name, before, after in rows]
    for taught in comparison.taught_labels:
        recall = f"{taught.recall:.3f} ({taught.recall_low:.3f} to {taught.recall_high:.3f})"
        lines.append((f"recall of {taught.label}", "", recall))
    lines.append(("lost (95 % interval)", "", drop))
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines
    )
    return f"<table><tr><th></th><th>before</th><th>after</th></tr>{body}</table>"
