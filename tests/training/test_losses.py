import math

import pytest
import torch
from torch import Tensor

from pwmlunet.errors import PwmlError
from pwmlunet.networks.base import Criterion
from pwmlunet.training.losses import (
    LOSSES,
    WeightedSum,
    dice,
    focal,
    focal_tversky,
    parse_loss,
    sbfl,
    sbfl_detached,
)

PROBABILITY = torch.tensor([0.3, 0.2, 0.1, 0.6], dtype=torch.float64)
TARGET = torch.tensor([1, 0, 0, 0], dtype=torch.float64).view(1, 1, 1, 1, 4)
VALID = torch.ones_like(TARGET)


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> Criterion:
    return LOSSES[request.param]


def random_case(n_targets: int = 2, ignored: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, n_targets, 2, 3, 4)
    logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = (torch.rand(shape, generator=generator) < 0.3).double()
    valid = torch.rand(2, 1, *shape[2:], generator=generator) < (0.7 if ignored else 2)
    return logits, target, valid.double()


def golden(loss: Criterion) -> tuple[float, Tensor]:
    """Value and gradient with respect to the probability: dp/dx = p (1−p)."""
    logits = PROBABILITY.logit().view_as(TARGET).requires_grad_()
    value = loss(logits, TARGET, VALID)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.item(), gradient.flatten() / (PROBABILITY * (1 - PROBABILITY))


@pytest.mark.parametrize(
    ("loss", "gradient"),
    [
        (sbfl, [-0.565689, 0.043897, 0.020084, 0.224179]),
        (sbfl_detached, [-0.589972, 0.039372, 0.018014, 0.201070]),
    ],
)
def test_self_balancing_focal_loss_has_the_golden_values(loss: Criterion, gradient: list[float]) -> None:
    value, found = golden(loss)
    assert value == pytest.approx(0.190903, abs=1e-6)
    assert found.tolist() == pytest.approx(gradient, abs=1e-6)


def test_focal_loss_has_the_golden_value() -> None:
    assert golden(focal)[0] == pytest.approx(0.204749, abs=1e-6)


def test_overlaps_by_hand() -> None:
    assert golden(dice)[0] == pytest.approx(1 - (2 * 0.3 + 1) / (1.2 + 1 + 1))
    index = (0.3 + 1) / (0.3 + 0.3 * 0.9 + 0.7 * 0.7 + 1)
    assert golden(focal_tversky)[0] == pytest.approx((1 - index) ** 0.75)


def looped(name: str, logits: Tensor, target: Tensor, valid: Tensor) -> float:
    """Each loss as its formula says, voxel by voxel."""
    n_valid = logits.shape[1] * int(valid.sum())
    total, overlap, tversky = 0.0, [], []
    for k in range(logits.shape[1]):
        bce = l0 = l1 = tp = fp = fn = 0.0
        for index in torch.nonzero(valid[:, 0]).tolist():
            b, z, y, x = index
            p, t = 1 / (1 + math.exp(-logits[b, k, z, y, x].item())), target[b, k, z, y, x].item()
            bce -= math.log(p if t else 1 - p)
            l0 -= (1 - t) * p * math.log(1 - p)
            l1 -= t * (1 - p) * math.log(p)
            tp, fp, fn = tp + t * p, fp + (1 - t) * p, fn + t * (1 - p)
        beta = 0.4 * l0 / (l0 + l1) + 0.5
        weighted = {"bce": bce, "focal": 0.9 * l1 + 0.1 * l0, "sbfl": beta * l1 + (1 - beta) * l0}
        total += weighted.get(name.removesuffix("_dice").removesuffix("_detached"), 0) / n_valid
        overlap.append(1 - (2 * tp + 1) / (2 * tp + fp + fn + 1))
        tversky.append((1 - (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1)) ** 0.75)
    regions = {"focal_tversky": tversky} | dict.fromkeys(["dice", "bce_dice", "sbfl_dice"], overlap)
    return float(total + sum(regions.get(name, [0])) / logits.shape[1])


@pytest.mark.parametrize("name", LOSSES)
def test_it_equals_a_loop_over_voxels(name: str) -> None:
    case = random_case()
    assert LOSSES[name](*case).item() == pytest.approx(looped(name, *case), rel=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sbfl_detached"])
def test_gradients_are_those_of_the_value(name: str) -> None:
    logits, target, valid = random_case()
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, target, valid), logits.requires_grad_(), raise_exception=False
    )


def test_ignored_voxels_count_nowhere(loss: Criterion) -> None:
    logits, target, valid = random_case()
    other_logits = torch.where(valid > 0, logits, 50.0).requires_grad_()
    other_target = torch.where(valid > 0, target, 1 - target)
    value = loss(other_logits, other_target, valid)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == loss(logits, target, valid).item()
    assert other_logits.grad is not None
    assert not other_logits.grad[(valid == 0).expand_as(logits)].any()


def test_ignored_voxels_are_as_good_as_absent(loss: Criterion) -> None:
    logits, target, valid = random_case(ignored=False)
    cropped = loss(logits[..., :2], target[..., :2], valid[..., :2])
    valid[..., 2:] = 0
    torch.testing.assert_close(loss(logits, target, valid), cropped)


def test_a_batch_of_ignored_voxels_gives_nothing(loss: Criterion) -> None:
    logits, target, valid = random_case()
    value = loss(logits.requires_grad_(), target, torch.zeros_like(valid))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [-1, 1, 0])
@pytest.mark.parametrize("lesions", ["some", "none", "all"])
def test_it_is_finite_for_any_logit(loss: Criterion, dtype: torch.dtype, sign: int, lesions: str) -> None:
    _, target, valid = random_case()
    target = {"some": target, "none": torch.zeros_like(target), "all": torch.ones_like(target)}[lesions]
    right = 100 * (2 * target - 1)
    logits = (sign * right if sign else torch.full_like(right, 100)).to(dtype).requires_grad_()
    value = loss(logits, target.float(), valid.float())
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite()
    assert value.item() < 1e-6 if sign == 1 else value.item() >= 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(loss: Criterion, dtype: torch.dtype) -> None:
    logits, target, valid = random_case()
    half = logits.to(dtype)
    value = loss(half, target.to(dtype), valid.to(dtype))
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(half.float(), target.float(), valid.float()))


def test_better_is_less(loss: Criterion) -> None:
    _, target, valid = random_case()
    values = [loss(scale * (2 * target - 1), target, valid).item() for scale in (-3, 0, 3, 9)]
    assert values == sorted(values, reverse=True)


def test_an_empty_target_still_lowers_probabilities(loss: Criterion) -> None:
    logits, target, valid = random_case(ignored=False)
    loss(logits.requires_grad_(), torch.zeros_like(target), valid).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.min() > 0
    assert logits.grad.max() > 1e-4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bce_dice", [(1, "bce"), (1, "dice")]),
        ("sbfl_dice", [(1, "sbfl"), (1, "dice")]),
        ("sbfl + 0.5*dice", [(1, "sbfl"), (0.5, "dice")]),
        (" 2 * focal+.25*focal_tversky + dice ", [(2, "focal"), (0.25, "focal_tversky"), (1, "dice")]),
        ("3.*bce", [(3, "bce")]),
    ],
)
def test_sums_are_read(text: str, expected: list[tuple[float, str]]) -> None:
    case = random_case()
    wanted = sum(weight * LOSSES[name](*case).item() for weight, name in expected)
    assert parse_loss(text)(*case).item() == pytest.approx(wanted)


def test_a_single_name_is_the_loss_itself() -> None:
    assert parse_loss("sbfl") is sbfl
    assert isinstance(parse_loss("2*sbfl"), WeightedSum)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sbfl + dise", "unknown loss 'dise'.*did you mean 'dice'"),
        ("", "cannot read ''"),
        ("sbfl +", "cannot read ''"),
        ("dice*0.5", r"cannot read 'dice\*0.5'.*write it like"),
        ("sbfl - dice", "cannot read 'sbfl - dice'"),
        ("0*dice", "weight of 'dice' must be above 0"),
    ],
)
def test_a_wrong_sum_is_explained(text: str, message: str) -> None:
    with pytest.raises(PwmlError, match=message):
        parse_loss(text)
