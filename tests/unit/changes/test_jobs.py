"""Jobs, progress and outcomes as stored documents."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.bundle.documents import from_data, to_data
from topwork.changes.jobs import ChangeOutcome, Job, Progress

# The bounds of stored whole numbers, which Hypothesis does not read from msgspec's constraints.
st.register_type_strategy(int, st.integers(0, 2**31 - 1))


@pytest.mark.slow
@settings(max_examples=50)
@given(st.from_type(Job) | st.from_type(ChangeOutcome) | st.from_type(Progress))
def test_document_survives_a_json_round_trip(value: Job | ChangeOutcome | Progress) -> None:
    """Every job, outcome and progress equals its copy read from JSON text."""
    stored = json.dumps(to_data(value), allow_nan=True)
    assert repr(from_data(json.loads(stored), type(value))) == repr(value)
