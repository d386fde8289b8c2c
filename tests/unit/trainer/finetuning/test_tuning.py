"""Parts of a training step: learning rates, class weights, mixup, parameter groups."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from support.small_backbone import backbone

from topwork_trainer.backbones.stages import stages
from topwork_trainer.finetuning.settings import FinetuneConfig, LinearHead
from topwork_trainer.finetuning.split import split
from topwork_trainer.finetuning.tuning import (
    TrainableTop,
    _blend,
    _class_weights,
    _rate_factor,
    _unfreeze,
)


def test_rate_factor_rises_and_then_falls() -> None:
    """The factor rises to 1 in a tenth of the steps and then falls to almost 0."""
    factors = [_rate_factor(step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert all(earlier >= later for earlier, later in pairwise(factors[9:]))
    assert 0 < factors[-1] < 0.001


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_rate_factor_of_a_short_training_is_positive(steps: int) -> None:
    """The first of few steps has the peak rate; there is no division by zero."""
    assert _rate_factor(0, steps) == 1.0
    assert all(0 < _rate_factor(step, steps) <= 1 for step in range(steps))


def test_class_weights_balance_the_classes() -> None:
    """The weights of the images of each class have the same sum; a class may have no images."""
    targets = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 3])
    weights = _class_weights(targets, 4)
    sums = torch.zeros(4).index_add(0, targets, weights[targets])
    assert sums[[0, 1, 3]].tolist() == pytest.approx([3, 3, 3])
    assert weights.isfinite().all()


def test_blend_permutes_partners() -> None:
    """Each image is the partner of exactly one image; without mixup, of itself."""
    share, partner = _blend(16, 0.2, np.random.default_rng(0))
    assert 0 <= share <= 1
    assert sorted(partner.tolist()) == list(range(16))
    assert partner.tolist() != list(range(16))
    whole, same = _blend(3, 0.0, np.random.default_rng(0))
    assert (whole, same.tolist()) == (1.0, [0, 1, 2])


def test_unfreeze_lowers_rates_by_stage_and_exempts_norms_from_decay() -> None:
    """The peak rate falls by ``decay`` per stage; only weights of layers have weight decay."""
    whole = backbone()
    unfrozen = stages(whole.module)
    parts = split(whole, {name for stage in unfrozen for name in stage.parameters})
    zeros = np.zeros((3, 16), dtype=np.float32)
    model = TrainableTop(parts, LinearHead(weights=zeros, bias=zeros[:, 0]))
    config = FinetuneConfig(rate=1.0, head_rate=5.0, decay=0.5, weight_decay=0.1)
    trained, groups = _unfreeze(model, unfrozen, config)
    assert [(group["peak"], group["weight_decay"]) for group in groups] == [
        (5.0, 0.0),
        *[(1.0, 0.1), (1.0, 0.0)],
        *[(0.5, 0.1), (0.5, 0.0)],
    ]
    assert [len(group["params"]) for group in groups] == [2, 1, 3, 1, 3]
    assert all(parameter.requires_grad for parameter in trained)
    assert len(trained) == 2 + len(list(whole.module.parameters()))
