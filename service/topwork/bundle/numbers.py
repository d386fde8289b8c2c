"""Bounds of whole numbers in stored documents: those of the contract's messages."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""How many there are of something."""

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A revision's number."""

Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""A seed of folds; see ``Exemplars.folds``."""
