"""Decoding of an item: from its bytes to the array that its backbone takes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from topwork.errors import ImageError, Unavailable
from topwork.inputs.image import WHOLE, Region, prepare
from topwork.inputs.kinds import kind_of
from topwork.inputs.preprocess import PreprocessSpec
from topwork.inputs.spec import InputSpec
from topwork.limits import InputLimits
from topwork.serving.encoders.encoder import Failed, Item, Refused

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Item between its two stages."""

    item: Item
    prepared: NDArray[Any]
    started: float
    """Start of decoding (time.perf_counter())."""
    seconds: float
    """Seconds of decoding."""
    region: Region
    """The part of the upright image that ``prepared`` shows."""


def decode(item: Item, spec: InputSpec, limits: InputLimits) -> Decoded | Refused | Failed:
    """Return the array of an item. Raises nothing."""
    started = time.perf_counter()
    try:
        prepared, region = _prepared(item, spec, limits)
    except ImageError as error:
        return Refused(
            id=item.id,
            message=text_of(error),
            reason=error.reason,
            started=started,
            decoded=time.perf_counter() - started,
        )
    except Exception as error:
        return failed(item, error)
    seconds = time.perf_counter() - started
    return Decoded(item, prepared, started, seconds, region)


def _prepared(item: Item, spec: InputSpec, limits: InputLimits) -> tuple[NDArray[Any], Region]:
    if not isinstance(spec, PreprocessSpec):
        return kind_of(spec).prepare(item.content, spec, limits=limits), WHOLE
    if item.pixels:
        shape = (spec.crop, spec.crop, 3)
        return np.frombuffer(item.content, dtype=np.uint8).reshape(shape), WHOLE
    image = prepare(item.content, spec, limits=limits)
    return image.pixels, image.region


def cancelled(item: Item) -> Failed:
    """Return the result of an item that is dropped."""
    return Failed(id=item.id, message="the caller has cancelled", stopping=True)


def failed(item: Item, error: Exception) -> Failed:
    """Return the result of an item that ends with ``error``, which is not its image's fault."""
    stopping = isinstance(error, Unavailable)
    if not stopping:
        log.error("input cannot be embedded", exc_info=error)
    return Failed(id=item.id, message=text_of(error), stopping=stopping)


def text_of(error: Exception) -> str:
    """Return the error's text without lone surrogates, which cannot be encoded."""
    return (str(error) or repr(error)).encode(errors="replace").decode()
