"""Choice of the encoder for this host."""

from __future__ import annotations

import os
from functools import partial

from topwork.limits import InputLimits
from topwork.runtime.backend import check_provider, may_use_gpu
from topwork.runtime.providers import Provider
from topwork.runtime.relay import Format
from topwork.serving.encoders.backbones import open_backbone
from topwork.serving.encoders.encoder import Encoder
from topwork.serving.encoders.gpu import GpuEncoder
from topwork.serving.encoders.page_locked import has_gpu
from topwork.serving.encoders.processes import ProcessEncoder
from topwork.serving.encoders.threads import ThreadEncoder


def make_encoder(
    *, provider: Provider, cores: int, limits: InputLimits, log_format: Format
) -> Encoder:
    """Return the encoder for a provider: a process per core, beside a GPU to decode only.

    Threads for one core, and without Linux, which processes need. Raises NotReady if this ONNX
    Runtime was built without the provider.
    """
    check_provider(provider)
    if cores == 1 or not hasattr(os, "memfd_create"):
        return ThreadEncoder(provider=provider, cores=cores, limits=limits)
    if may_use_gpu(provider):
        if provider != "auto" or has_gpu():
            opener = partial(open_backbone, provider=provider, cores=cores)
            return GpuEncoder(
                open_backbone=opener, cores=cores, limits=limits, log_format=log_format
            )
        provider = "cpu"  # else every process would load CUDA in vain
    return ProcessEncoder(provider=provider, cores=cores, limits=limits, log_format=log_format)
