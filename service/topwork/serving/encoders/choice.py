"""Choice of the encoder for this host."""

from __future__ import annotations

import os

from topwork.limits import InputLimits
from topwork.runtime.backend import check_provider, may_use_gpu
from topwork.runtime.providers import Provider
from topwork.runtime.relay import Format
from topwork.serving.encoders.encoder import Encoder
from topwork.serving.encoders.processes import ProcessEncoder
from topwork.serving.encoders.threads import ThreadEncoder


def make_encoder(
    *, provider: Provider, cores: int, limits: InputLimits, log_format: Format
) -> Encoder:
    """Return the encoder for a provider: a process per core; threads for one core or a GPU.

    Processes need Linux.

    Raises NotReady if this ONNX Runtime was built without the provider.
    """
    check_provider(provider)
    if cores == 1 or may_use_gpu(provider) or not hasattr(os, "memfd_create"):
        return ThreadEncoder(provider=provider, cores=cores, limits=limits)
    return ProcessEncoder(provider=provider, cores=cores, limits=limits, log_format=log_format)
