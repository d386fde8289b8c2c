"""From an item to its result: decoding, then the backbone, in this process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from topwork.bundle.manifest import BackboneInfo
from topwork.limits import InputLimits
from topwork.runtime.providers import Provider
from topwork.serving.encoders.backbone import Backbone, Embedded
from topwork.serving.encoders.backbones import open_backbone
from topwork.serving.encoders.decoding import Decoded, decode, failed
from topwork.serving.encoders.encoder import Deliver, Encoded, Failed, Item, Refused


@dataclass(frozen=True, slots=True)
class Embeddable:
    """Decoded item with its backbone, which lives on if it is unloaded meanwhile."""

    backbone: Backbone
    decoded: Decoded

    def embed(self, deliver: Deliver, *, wide: bool) -> None:
        """Embed the item, and pass its result to ``deliver``, perhaps in another thread."""
        self.backbone.embed(
            self.decoded.prepared, partial(_deliver, deliver, self.decoded), wide=wide
        )


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

    def decode(self, item: Item) -> Embeddable | Refused | Failed:
        """Decode an item."""
        backbone = self._backbones.get(item.backbone)
        if backbone is None:
            return failed(item, LookupError(f"backbone {item.backbone} is not loaded"))
        decoded = decode(item, backbone.info.preprocess, self._limits)
        return Embeddable(backbone, decoded) if isinstance(decoded, Decoded) else decoded

    def close(self) -> None:
        """Close all backbones, after the items that are in progress."""
        for backbone in self._backbones.values():
            backbone.close()


def _deliver(deliver: Deliver, decoded: Decoded, result: Embedded | Exception) -> None:
    if isinstance(result, Exception):
        deliver(failed(decoded.item, result))
        return
    waited = result.waited
    if result.run is not None:  # the input may have waited before it came to the backbone
        waited = result.run.start - decoded.started - decoded.seconds
    deliver(
        Encoded(
            id=decoded.item.id,
            embedding=result.embedding.tobytes(),
            started=decoded.started,
            decoded=decoded.seconds,
            waited=waited,
            computed=result.computed,
            run=result.run,
            region=decoded.region,
        )
    )
