"""Jobs and outcomes are data that a database can keep."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.bundle.documents import from_data, to_data
from topwork.changes.jobs import ChangeOutcome, Job, Progress

# Whole numbers as stored data may have them: Hypothesis knows nothing of msgspec's bounds.
st.register_type_strategy(int, st.integers(0, 2**31 - 1))


@settings(max_examples=50)
@given(st.from_type(Job) | st.from_type(ChangeOutcome) | st.from_type(Progress))
def test_what_is_stored_comes_back(value: Job | ChangeOutcome | Progress) -> None:
    """Every job, outcome and progress is the same after its way through JSON text."""
    stored = json.dumps(to_data(value), allow_nan=True)
    assert repr(from_data(json.loads(stored), type(value))) == repr(value)
