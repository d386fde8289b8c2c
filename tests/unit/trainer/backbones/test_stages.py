"""Stages of backbones, counted from the output side."""

import pytest
import torch
from torch import nn

from topwork.errors import InvalidInput
from topwork_trainer.backbones import torchvision_import
from topwork_trainer.backbones.efficientnet_lite import EfficientNetLite
from topwork_trainer.backbones.joined import Joined
from topwork_trainer.backbones.pooled import Pooled
from topwork_trainer.backbones.stages import parse, stages

LITE = ("head", *(f"stage {number}" for number in range(7, 0, -1)), "stem")


@pytest.mark.parametrize(("width", "depth"), [(1.0, 1.0), (1.0, 1.1), (1.1, 1.2)])
def test_lite_has_stem_seven_stages_and_head(width: float, depth: float) -> None:
    """An EfficientNet-Lite of any scale has a stem, seven stages and a head."""
    with torch.device("meta"):
        module = EfficientNetLite(width=width, depth=depth)
    assert tuple(stage.name for stage in stages(module)) == LITE


def test_blocks_of_lite0_are_in_their_stages() -> None:
    """The last of Lite0's 16 blocks is stage 7, and the four blocks before it are stage 6."""
    with torch.device("meta"):
        by_name = {stage.name: stage for stage in stages(EfficientNetLite(width=1.0, depth=1.0))}
    blocks = {
        name: sorted({int(p.split(".")[1]) for p in stage.parameters if p.startswith("_blocks.")})
        for name, stage in by_name.items()
    }
    assert blocks["stage 7"] == [15]
    assert blocks["stage 6"] == [11, 12, 13, 14]
    assert blocks["stem"] == blocks["head"] == []


@pytest.mark.parametrize(
    ("name", "top", "bottom", "count"),
    [
        ("resnet18", "layer4", "conv1", 5),
        ("mobilenet_v3_small", "classifier", "features.0", 14),
        ("efficientnet_b0", "features.8", "features.0", 9),
        ("convnext_tiny", "features.7", "features.0", 8),
        ("regnet_y_400mf", "trunk_output.block4", "stem", 5),
        ("vit_b_32", "encoder.layers.encoder_layer_11", "conv_proj", 13),
        ("densenet121", "features.denseblock4", "features.conv0", 8),
        ("vgg11_bn", "classifier", "features.0", 9),
    ],
)
def test_torchvision_networks_have_the_stages_of_their_authors(
    name: str, top: str, bottom: str, count: int
) -> None:
    """Each parameter of a torchvision network is in exactly one stage, in the right order."""
    with torch.device("meta") if name != "regnet_y_400mf" else torch.device("cpu"):
        module = torchvision_import.build(name)
    cut(module)
    found = stages(module)
    assert (found[0].name, found[-1].name, len(found)) == (top, bottom, count)
    owned = sorted(parameter for stage in found for parameter in stage.parameters)
    assert owned == sorted(parameter for parameter, _ in module.named_parameters())
    assert sum(stage.size for stage in found) == sum(p.numel() for p in module.parameters())


def cut(module: nn.Module) -> None:
    """Remove the last layer, as in a backbone."""
    *_, last = (name for name, m in module.named_modules() if isinstance(m, nn.Linear))
    module.set_submodule(last, nn.Identity())


def test_tokens_of_a_transformer_are_in_the_input_stage() -> None:
    """Class token and position embedding are in the stage of the patch projection."""
    with torch.device("meta"):
        *_, stem = stages(torchvision_import.build("vit_b_32"))
    assert {"class_token", "encoder.pos_embedding"} <= set(stem.parameters)


def test_norm_is_in_the_stage_of_the_layer_before_it() -> None:
    """A normalisation alone is not a stage."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 2))
    assert [stage.parameters for stage in stages(module)] == [
        ("3.weight", "3.bias"),
        ("0.weight", "0.bias", "1.weight", "1.bias"),
    ]


def test_shared_parameter_is_in_one_stage() -> None:
    """A weight shared by two layers is in the stage nearer to the input."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    assert [stage.parameters for stage in stages(module)] == [("0.weight", "0.bias", "1.bias")]


def test_stages_of_joined_backbones_are_merged() -> None:
    """The k-th stage of joined backbones has the k-th stages of all parts that have one."""
    small, large = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    joined = Joined([(small, mean, std), (large, mean, std)])
    upper, lower = stages(joined)
    assert (upper.name, lower.name) == ("0 + 1", "0")
    assert upper.parameters == (
        *("parts.0.module.0.weight", "parts.0.module.0.bias"),
        *("parts.1.module.1.weight", "parts.1.module.1.bias"),
    )
    assert sorted(upper.parameters + lower.parameters) == sorted(dict(joined.named_parameters()))
    assert upper.size + lower.size == sum(p.numel() for p in joined.parameters())


def test_stages_of_a_pooled_backbone_are_those_of_its_network() -> None:
    """A pooled backbone has the same stages, so that the same ``last:N`` unfreezes the same."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Flatten(2))
    pooled = Pooled(module, ["0", "1"], crop=8)
    for stage, inner in zip(stages(pooled), stages(module), strict=True):
        assert stage.name == inner.name
        assert stage.parameters == tuple(f"module.{name}" for name in inner.parameters)


@pytest.mark.parametrize(("text", "count"), [("none", 0), ("last:1", 1), ("last:9", 9), ("all", 9)])
def test_parse_counts_stages_from_the_output_side(text: str, count: int) -> None:
    """``none``, ``last:N`` and ``all`` give a number of stages."""
    with torch.device("meta"):
        assert parse(text, stages(EfficientNetLite(width=1.0, depth=1.0))) == count


@pytest.mark.parametrize("text", ["", "last", "last:0", "last:10", "last:-1", "last:²", "first:2"])
def test_parse_refuses_an_invalid_value(text: str) -> None:
    """The error has the field, the invalid value and the possible values."""
    with torch.device("meta"):
        available = stages(EfficientNetLite(width=1.0, depth=1.0))
    with pytest.raises(InvalidInput, match=r"last:1 to last:9; .* head, stage 7,") as caught:
        parse(text, available)
    assert caught.value.field == "unfreeze"
    assert repr(text) in str(caught.value)
