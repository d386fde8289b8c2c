"""Integer types of stored documents, with the same bounds as in the protobuf messages."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""A number of things, such as images."""

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A revision's number."""

Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""Seed of ``Exemplars.folds``."""
