"""Choice between the CPU and the GPU implementation of a backbone."""

from __future__ import annotations

from topwork.bundle.manifest import BackboneInfo
from topwork.inputs.preprocess import PreprocessSpec
from topwork.runtime.backend import open_session
from topwork.runtime.providers import Provider
from topwork.serving.encoders.backbone import Backbone
from topwork.serving.encoders.cpu_backbone import open_cpu_backbone
from topwork.serving.encoders.gpu_backbone import SIZES, open_gpu_backbone

WIDEST_BATCHED = 2**14
"""Raising it runs wider rows in micro-batches, with a session and its memory for each size.

Wider rows contain feature maps, for explanations of single images.
"""


def open_backbone(info: BackboneInfo, model: bytes, *, provider: Provider, cores: int) -> Backbone:
    """Load and warm a backbone. Raises Corrupt or NotReady as open_session does.

    Micro-batches are for images, which have one shape. Other inputs run one by one, also on a GPU.
    """
    session = open_session(model, output="embedding", provider=provider)
    if session.on_gpu and isinstance(info.preprocess, PreprocessSpec):
        sizes = SIZES if info.width <= WIDEST_BATCHED else SIZES[:1]
        return open_gpu_backbone(info, model, session, sizes=sizes)
    return open_cpu_backbone(info, model, session, provider=provider, cores=cores)
