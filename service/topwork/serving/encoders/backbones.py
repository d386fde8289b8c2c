"""Choice between the CPU and the GPU implementation of a backbone."""

from __future__ import annotations

from topwork.bundle.manifest import BackboneInfo
from topwork.runtime.backend import open_session
from topwork.runtime.providers import Provider
from topwork.serving.encoders.backbone import Backbone
from topwork.serving.encoders.cpu_backbone import open_cpu_backbone
from topwork.serving.encoders.gpu_backbone import open_gpu_backbone


def open_backbone(info: BackboneInfo, model: bytes, *, provider: Provider, cores: int) -> Backbone:
    """Load and warm a backbone. Raises Corrupt or NotReady as open_session does."""
    session = open_session(model, output="embedding", provider=provider)
    if session.on_gpu:
        return open_gpu_backbone(info, model, session)
    return open_cpu_backbone(info, model, session, provider=provider, cores=cores)
