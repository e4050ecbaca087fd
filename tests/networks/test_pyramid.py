import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pwmlunet.networks.pyramid import FeaturePyramid, Pyramid, ResNetPyramid, SmallPyramid


def small(n_levels: int = 3, finest_stride: int = 2, dropout: float = 0.0) -> SmallPyramid:
    return SmallPyramid(
        2,
        width=3,
        n_stages=4,
        norm="instance",
        dropout=dropout,
        finest_stride=finest_stride,
        n_levels=n_levels,
    )


def resnet(n_levels: int = 5, depth: int = 50, n_channels: int = 2) -> ResNetPyramid:
    return ResNetPyramid(n_channels, depth=depth, width=2, norm="batch", n_levels=n_levels)


def random_slices(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("pyramid", "strides"),
    [
        (small(), (2, 4, 8)),
        (small(n_levels=2), (2, 4)),
        (small(n_levels=5), (2, 4, 8, 16, 32)),
        (small(n_levels=4, finest_stride=1), (1, 2, 4, 8)),
        (small(n_levels=2, finest_stride=8), (8, 16)),
        (resnet(), (4, 8, 16, 32, 64)),
        (resnet(n_levels=3), (4, 8, 16)),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape_yx", [(64, 96), (75, 101), (33, 40)])
def test_maps_cover_a_slice_of_any_size(
    pyramid: Pyramid, strides: tuple[int, ...], device: str, shape_yx: tuple[int, int]
) -> None:
    maps = copy.deepcopy(pyramid).eval().to(device)(torch.zeros(3, 2, *shape_yx, device=device))
    height, width = shape_yx
    assert pyramid.strides == strides
    assert [tuple(m.shape) for m in maps] == [
        (3, pyramid.n_features, -(-height // s), -(-width // s)) for s in strides
    ]
    assert pyramid.n_features == 4 * (3 if isinstance(pyramid, SmallPyramid) else 2)


@pytest.mark.parametrize(("depth", "n_body", "n_tensors"), [(50, 23_508_032, 318), (101, 42_500_160, 624)])
def test_the_resnet_is_the_published_one(depth: int, n_body: int, n_tensors: int) -> None:
    with torch.device("meta"):
        pyramid = ResNetPyramid(3, depth=depth, width=64, norm="batch", n_levels=5)
    assert n_parameters(pyramid.body) == n_body
    assert n_parameters(pyramid.fpn) == 3_344_384
    assert len(pyramid.body.state_dict()) == n_tensors  # torchvision's, less its classifier's two
    shapes = {name: tuple(value.shape) for name, value in pyramid.state_dict().items()}
    assert shapes["body.conv1.weight"] == (64, 3, 7, 7)
    assert shapes["body.layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["body.layer2.0.downsample.1.running_var"] == (512,)
    assert shapes[f"body.layer3.{22 if depth == 101 else 5}.conv2.weight"] == (256, 256, 3, 3)
    assert shapes["body.layer4.2.bn3.bias"] == (2048,)
    assert shapes["fpn.inner_blocks.3.weight"] == (256, 2048, 1, 1)
    assert shapes["fpn.layer_blocks.0.bias"] == (256,)
    assert not {"body.layer2.1.downsample.0.weight", "body.layer1.0.conv1.bias"} & shapes.keys()


def resnet_of(state: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """A ResNet-50's stages, step by step from its weights by name."""

    def layer(features: Tensor, convolution: str, norm: str, stride: int = 1) -> Tensor:
        kernel = state[f"{convolution}.weight"]
        features = F.conv2d(features, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(features, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"])

    features, stages = F.max_pool2d(F.relu(layer(image, "conv1", "bn1", 2)), 3, 2, 1), []
    for stage, n_blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(n_blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = F.relu(layer(features, f"{name}.conv1", f"{name}.bn1"))
            inner = F.relu(layer(inner, f"{name}.conv2", f"{name}.bn2", stride))
            inner = layer(inner, f"{name}.conv3", f"{name}.bn3")
            if block == 0:
                features = layer(features, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            features = F.relu(inner + features)
        stages.append(features)
    return stages


@torch.no_grad()
def test_the_resnet_computes_what_its_weights_say() -> None:
    pyramid = resnet().eval()
    for value in pyramid.body.state_dict().values():
        if value.ndim == 1:  # the normalisations are told apart
            value.uniform_(0.5, 1.5)
    image = random_slices(2, 2, 45, 70)
    torch.testing.assert_close(pyramid.stages(image), resnet_of(pyramid.body.state_dict(), image))


@torch.no_grad()
def test_deep_maps_are_added_to_the_fine_ones_above_them() -> None:
    pyramid = FeaturePyramid([1, 1, 1], 1, 4)
    for inner, layer in zip(pyramid.inner_blocks, pyramid.layer_blocks, strict=True):
        nn.init.ones_(inner.weight)  # type: ignore[arg-type]
        nn.init.dirac_(layer.weight)  # type: ignore[arg-type]
    fine = torch.arange(30.0).view(1, 1, 5, 6)
    middle = torch.arange(9.0).view(1, 1, 3, 3) * 100
    deep = torch.arange(4.0).view(1, 1, 2, 2) * 10_000
    maps = pyramid([fine, middle, deep])
    y, x = torch.meshgrid(torch.arange(5), torch.arange(6), indexing="ij")
    expected = middle[0, 0] + deep[0, 0][y[:3, :3] // 2, x[:3, :3] // 2]
    assert torch.equal(maps[0][0, 0], fine[0, 0] + expected[y // 2, x // 2])
    assert torch.equal(maps[1][0, 0], expected)
    assert torch.equal(maps[2], deep)
    assert torch.equal(maps[3], deep[:, :, ::2, ::2])


@pytest.mark.parametrize("pyramid", [small(n_levels=2), resnet(n_levels=3)])
def test_every_weight_takes_part_even_with_fewer_levels(pyramid: Pyramid) -> None:
    maps = pyramid.train()(random_slices(2, 2, 64, 96))
    torch.stack([m.square().sum() for m in maps]).sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in pyramid.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_the_small_pyramid_begins_at_its_finest_stride() -> None:
    pyramid = small(finest_stride=4).eval()
    image = random_slices(1, 2, 40, 56)
    features, stages = image, []
    for unit in pyramid.body.children():
        features = unit(features)
        stages.append(features)
    torch.testing.assert_close(pyramid.stages(image), stages[2:])
    assert [m.shape[1] for m in stages] == [3, 6, 12, 24]
    assert all(n.shape[2] * 2 == m.shape[2] for m, n in pairwise(stages))


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["small", "resnet"])
def test_dropout_takes_whole_maps_of_the_deepest_stage_alone(backbone: str) -> None:
    torch.manual_seed(0)
    if backbone == "small":
        pyramid: Pyramid = small(dropout=0.5)
    else:
        pyramid = ResNetPyramid(2, depth=50, width=2, norm="instance", n_levels=4, dropout=0.5)
    seen: list[list[Tensor]] = []
    pyramid.fpn.register_forward_pre_hook(lambda _, given: seen.append(list(given[0])))
    image = random_slices(2, 2, 64, 96)
    pyramid.train()(image)
    pyramid.eval()(image)
    (*fine, deep), (*kept, whole) = seen
    left_out = (deep == 0).flatten(2).all(2) & ~(whole == 0).flatten(2).all(2)
    assert 0 < left_out.sum() < left_out.numel()
    torch.testing.assert_close(fine, kept)
    torch.testing.assert_close(deep[~left_out], 2 * whole[~left_out])


def test_the_norm_is_chosen_by_name() -> None:
    batch = ResNetPyramid(1, depth=50, width=1, norm="batch", n_levels=4)
    instance = ResNetPyramid(1, depth=50, width=1, norm="instance", n_levels=4)
    assert {type(m) for m in batch.modules()} - {type(m) for m in instance.modules()} == {nn.BatchNorm2d}
    assert {type(m) for m in instance.modules()} - {type(m) for m in batch.modules()} == {nn.InstanceNorm2d}
    assert {"body.bn1.weight", "body.bn1.bias"} <= instance.state_dict().keys()


@torch.no_grad()
def test_the_maps_of_a_new_pyramid_keep_the_scale() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid([32, 64], 64, 2)
    _, deep = pyramid([random_slices(2, 32, 32, 32), random_slices(2, 64, 16, 16)])
    assert float(deep.std()) == pytest.approx(1, rel=0.1)


@pytest.mark.slow
def test_a_compiler_sees_one_graph() -> None:
    for pyramid in (small(), resnet()):
        image = random_slices(2, 2, 64, 96)
        compiled = torch.compile(pyramid.eval(), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(image), pyramid(image))


def test_a_finest_stride_without_a_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="3 is not in list"):
        small(finest_stride=3)
