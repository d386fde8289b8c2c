"""Division of a backbone: stem and top together are the backbone, and the top has what trains."""

from __future__ import annotations

import pytest
import torch
from support.small_backbone import Small, backbone
from torch import Tensor, nn

from topwork_trainer.backbones.joined import Joined
from topwork_trainer.backbones.parity import ExportError
from topwork_trainer.backbones.stages import stages
from topwork_trainer.finetuning.split import split

IMAGES = torch.rand((3, 3, 16, 16), generator=torch.Generator().manual_seed(1)) - 0.5


class Tokens(nn.Module):
    """Patches and a class token, as in a vision transformer, with a constant in the top."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 8, stride=8)
        self.token = nn.Parameter(torch.ones(1, 1, 4))
        self.layer = nn.Linear(4, 4)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 4)."""
        patches = self.patch(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], dim=1)
        features: Tensor = (self.layer(tokens) * self.scale.sqrt())[:, 0] + tokens.mean(dim=1)
        return features


class Fixed(nn.Module):
    """Convolution with a batch norm that two layers use: it cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 4)."""
        plain = self.conv(images)
        both: Tensor = plain + self.norm(plain)
        return both.mean(dim=(2, 3))


def joined() -> nn.Module:
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Joined([(Small(), zero, one), (Small(), zero, one)])


@pytest.mark.parametrize("make", [Small, Tokens, Fixed, joined])
@pytest.mark.parametrize("depth", [1, None], ids=["last:1", "all"])
def test_parts_together_are_the_backbone(make: type[nn.Module], depth: int | None) -> None:
    """Any number of images gives the module's embeddings; the top has the trained parameters."""
    whole = backbone(module=make().eval())
    trained = {name for stage in stages(whole.module)[:depth] for name in stage.parameters}
    parts = split(whole, trained)
    with torch.no_grad():
        activations = parts.stem(IMAGES)
        torch.testing.assert_close(parts.top(*activations), whole.module(IMAGES))
    assert [tuple(part.shape) for part in activations] == [(3, *shape) for shape in parts.shapes]
    assert trained <= set(dict(parts.top.named_parameters()))
    assert trained.isdisjoint(dict(parts.stem.named_parameters()))


def test_gradients_are_those_of_the_whole_backbone() -> None:
    """Folding batch norms into convolutions changes no gradient."""
    whole = backbone()
    trained = stages(whole.module)[0].parameters
    parts = split(whole, trained)
    parts.top(*parts.stem(IMAGES)).square().sum().backward()
    whole.module(IMAGES).square().sum().backward()
    for name in trained:
        torch.testing.assert_close(
            parts.top.get_parameter(name).grad, whole.module.get_parameter(name).grad
        )


def test_norms_are_folded() -> None:
    """The top applies no batch norm that follows a convolution alone."""
    whole = backbone()
    trained = {name for stage in stages(whole.module) for name in stage.parameters}
    assert "batch_norm" not in split(whole, trained).top.code


def test_a_network_that_changes_its_input_is_refused() -> None:
    """Parts that do not give the backbone's embeddings are an error, not a bad fine-tuning."""

    class Inplace(Small):
        def forward(self, images: Tensor) -> Tensor:
            first = self.features[0](images)
            second = self.features[4](first)
            first.mul_(2)
            features: Tensor = second.mean(dim=(2, 3)) + first.mean()
            return features

    whole = backbone(module=Inplace().eval())
    with pytest.raises(ExportError, match="small cannot be divided"):
        split(whole, {"features.4.weight", "features.4.bias"})
