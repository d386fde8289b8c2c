"""From an item to its result: decoding, then the backbone, in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import structlog

from topwork.bundle.manifest import BackboneInfo
from topwork.errors import ImageError, Unavailable
from topwork.inputs.image import Pixels, preprocess
from topwork.inputs.preprocess import PreprocessSpec
from topwork.limits import InputLimits
from topwork.runtime.providers import Provider
from topwork.serving.encoders.backbone import Backbone, Embedded
from topwork.serving.encoders.backbones import open_backbone
from topwork.serving.encoders.encoder import Deliver, Encoded, Failed, Item, Refused

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Item between its two stages."""

    item: Item
    backbone: Backbone
    pixels: Pixels
    started: float
    """Start of decoding (time.perf_counter())."""
    seconds: float
    """Seconds of decoding."""


class Pipeline:
    """Backbones of this process, and the work on items. May be used by several threads at once."""

    def __init__(self, *, provider: Provider, limits: InputLimits) -> None:
        self._provider: Provider = provider
        self._limits = limits
        self._backbones: dict[str, Backbone] = {}

    def load(self, info: BackboneInfo, model: bytes, *, cores: int) -> Backbone:
        """Load a backbone, with a session on ``cores``. Raises Corrupt and NotReady."""
        backbone = open_backbone(info, model, provider=self._provider, cores=cores)
        self._backbones[info.digest] = backbone
        return backbone

    def unload(self, digest: str) -> None:
        """Free a backbone, after the items that are in progress."""
        self._backbones.pop(digest, None)

    def decode(self, item: Item) -> Decoded | Refused | Failed:
        """Return the pixels of an item."""
        started = time.perf_counter()
        try:
            backbone = self._backbones[item.backbone]
            pixels = _decode(item, backbone.info.preprocess, self._limits)
        except ImageError as error:
            return Refused(
                id=item.id,
                message=text_of(error),
                reason=error.reason,
                started=started,
                decoded=time.perf_counter() - started,
            )
        except Exception as error:
            return _failed(item, error)
        return Decoded(item, backbone, pixels, started, time.perf_counter() - started)

    def embed(self, decoded: Decoded, deliver: Deliver, *, wide: bool) -> None:
        """Embed an item, and pass its result to ``deliver``, perhaps in another thread."""
        decoded.backbone.embed(decoded.pixels, partial(_deliver, deliver, decoded), wide=wide)

    def close(self) -> None:
        """Close all backbones, after the items that are in progress."""
        for backbone in self._backbones.values():
            backbone.close()


def _decode(item: Item, spec: PreprocessSpec, limits: InputLimits) -> Pixels:
    if item.pixels:
        shape = (spec.crop, spec.crop, 3)
        return np.frombuffer(item.content, dtype=np.uint8).reshape(shape)
    return preprocess(item.content, spec, limits=limits)


def _deliver(deliver: Deliver, decoded: Decoded, result: Embedded | Exception) -> None:
    if isinstance(result, Exception):
        deliver(_failed(decoded.item, result))
        return
    deliver(
        Encoded(
            id=decoded.item.id,
            embedding=result.embedding.tobytes(),
            started=decoded.started,
            decoded=decoded.seconds,
            waited=result.waited,
            computed=result.computed,
            run=result.run,
        )
    )


def cancelled(item: Item) -> Failed:
    """Return the result of an item that is dropped."""
    return Failed(id=item.id, message="the caller has cancelled", stopping=True)


def _failed(item: Item, error: Exception) -> Failed:
    stopping = isinstance(error, Unavailable)
    if not stopping:
        log.error("image cannot be embedded", exc_info=error)
    return Failed(id=item.id, message=text_of(error), stopping=stopping)


def text_of(error: Exception) -> str:
    """Return the error's text without lone surrogates, which cannot be encoded."""
    return (str(error) or repr(error)).encode(errors="replace").decode()
