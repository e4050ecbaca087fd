from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pwmlunet.errors import PwmlError
from pwmlunet.networks import boxes, two_stage
from pwmlunet.networks.base import Batch, NetworkConfig
from pwmlunet.networks.region_heads import ProposalHead, RegionHeads, _by_anchor
from pwmlunet.networks.region_losses import choose_regions, draw_some, proposal_losses
from pwmlunet.networks.two_stage import (
    N_LISTED,
    PROPOSAL_OVERLAP,
    REGION_OVERLAP,
    TwoStage,
    TwoStageConfig,
)

SMALL = TwoStageConfig(width=4, n_stages=3, anchor_sizes=(4.0, 8.0), n_proposals=12, n_regions=6)


def bce(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * valid).sum() / valid.sum().clamp_min(1)


def dots(n_slices: int = 2, size: int = 48) -> Batch:
    """Bright dots of 2 × 3 pixels in noise, none in the last slice."""
    generator = torch.Generator().manual_seed(3)
    image = 0.3 * torch.randn(n_slices, 1, 1, size, size, generator=generator)
    target = torch.zeros_like(image)
    for z in range(n_slices - 1):
        for y, x in ((9 + 5 * z, 30), (31, 12 + 3 * z)):
            target[z, :, :, y : y + 2, x : x + 3] = 1
    return Batch(image + 4 * target, target, torch.ones_like(target))


def train(network: TwoStage, batch: Batch, n_steps: int) -> list[dict[str, float]]:
    torch.manual_seed(1)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.003)
    rows = []
    for _ in range(n_steps):
        optimiser.zero_grad()
        losses = network.losses(batch, bce)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        rows.append({name: loss.item() for name, loss in losses.items()})
    return rows


@pytest.fixture(scope="module")
def trained() -> TwoStage:
    torch.manual_seed(0)
    network = SMALL.build(1, 1)
    train(network, dots(4), 60)
    return network.eval()


@torch.no_grad()
def test_lesions_smaller_than_any_anchor_are_found(trained: TwoStage) -> None:
    batch = dots(4)
    found = trained.segment(batch.image) > 0.5
    overlap = (found & (batch.target > 0)).sum() / (found | (batch.target > 0)).sum()
    assert overlap > 0.6
    assert not found[-1].any()


@torch.no_grad()
def test_proposals_cover_every_lesion(trained: TwoStage) -> None:
    batch = dots(4)
    regions = trained.find_regions(batch.image)
    lesions = boxes.components(batch.target[:-1, 0, 0] > 0, 9)
    assert lesions.shape == (3, 2, 4)
    covered = boxes.overlap(lesions, regions.proposals[:-1]).amax(-1)
    assert (covered > 0.3).all()
    assert (regions.proposal_scores.diff() <= 0).all() and (regions.scores.diff() <= 0).all()


@torch.no_grad()
def test_no_two_regions_share_much(trained: TwoStage) -> None:
    regions = trained.find_regions(dots(4).image)
    for found, scores, most in (
        (regions.proposals, regions.proposal_scores, PROPOSAL_OVERLAP),
        (regions.boxes, regions.scores, REGION_OVERLAP),
    ):
        for boxes_of_slice, kept in zip(found, scores > 0, strict=True):
            shared = boxes.overlap(boxes_of_slice[kept], boxes_of_slice[kept])
            assert kept.sum() > 3 and shared.fill_diagonal_(0).max() <= most
    assert regions.proposals.shape[1] == N_LISTED and regions.boxes.shape[1] == SMALL.n_regions


@torch.no_grad()
def test_proposals_that_are_only_listed_are_not_judged(trained: TwoStage) -> None:
    config = trained.config
    few = replace(config, n_proposals=1).build(1, 1).eval()
    few.load_state_dict(trained.state_dict())
    found, all_found = few.find_regions(dots(4).image), trained.find_regions(dots(4).image)
    assert torch.equal(found.proposals, all_found.proposals)
    assert (found.scores > 0).sum(1).max() == 1 < (all_found.scores > 0).sum(1).min()


@torch.no_grad()
def test_boxes_that_fill_a_slice_up_are_not_judged(
    trained: TwoStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_stage, "PROPOSAL_OVERLAP", 0.0)  # few are left, and all that were dropped fill up
    monkeypatch.setattr(two_stage, "REGION_OVERLAP", 1.0)
    network = replace(SMALL, n_proposals=60, n_regions=60).build(1, 1).eval()
    network.load_state_dict(trained.state_dict())
    found = network.find_regions(torch.zeros(1, 1, 1, 8, 12))
    n_proposals = int((found.proposal_scores > 0).sum())
    assert 0 < n_proposals < 60 and found.proposals[0, n_proposals:60].any()
    assert (found.scores > 0).sum() == n_proposals


def test_every_backbone_gets_the_dropout() -> None:
    for config in (SMALL, TwoStageConfig(width=2, backbone="resnet50", n_stages=6, finest_stride=4)):
        assert replace(config, dropout=0.4).build(1, 1).backbone.dropout.p == 0.4


@torch.no_grad()
def test_a_probability_is_the_largest_product_of_score_and_mask(trained: TwoStage) -> None:
    image = dots(4).image
    regions = trained.find_regions(image)
    expected = torch.zeros(4, 1, 48, 48)
    for z in range(4):
        for box, score, mask in zip(regions.boxes[z], regions.scores[z], regions.masks[z], strict=True):
            wide = boxes.enlarge(box, 1.3, (48, 48))
            alone = boxes.paste(score * mask[None, None], wide[None, None], (48, 48))
            expected[z] = torch.maximum(expected[z], alone[0])
    torch.testing.assert_close(trained.segment(image)[:, :, 0], expected)


@torch.no_grad()
def test_a_mask_is_of_all_lesions_in_a_region_and_of_known_pixels() -> None:
    target = torch.zeros(1, 1, 1, 32, 32)
    target[..., 10:12, 8:10] = target[..., 10:12, 11:13] = 1
    valid = torch.ones_like(target)
    valid[..., 12] = 0
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(logits: Tensor, wanted: Tensor, counted: Tensor) -> Tensor:
        seen.append((wanted, counted))
        return bce(logits, wanted, counted)

    torch.manual_seed(0)
    network = replace(SMALL, enlargement=3.0).build(1, 1)
    network.losses(Batch(torch.randn(1, 1, 1, 32, 32), target, valid), keep)
    ((wanted, counted),) = seen
    used = counted.flatten(1).amax(1) > 0
    assert 0 < used.sum() < len(used)  # regions that are no lesion's teach no mask
    middle = (wanted[used, 0, 0].amax(1) > 0.5).int()  # (regions, x)
    assert (middle.diff(dim=1) == 1).sum(1).max() == 2
    unknown = counted[used, 0, 0].amin(1) == 0
    assert unknown.any() and not unknown.all()


@pytest.mark.parametrize(("k", "side"), [(1.0, 14), (1.3, 18), (1.5, 21), (3.0, 42)])
def test_a_mask_is_as_fine_whatever_the_enlargement(k: float, side: int) -> None:
    config = replace(SMALL, enlargement=k)
    assert config.mask_side == side
    assert config.build(1, 2).eval().find_regions(torch.zeros(1, 1, 1, 16, 16)).masks.shape[2:] == (
        2,
        side,
        side,
    )


@pytest.mark.parametrize(("light", "n_parameters"), [(True, 1_180_674), (False, 2_623_234)])
def test_the_mask_heads_have_the_published_sizes(light: bool, n_parameters: int) -> None:
    heads = RegionHeads(256, 1024, 2, box_side=7, light=light, prior_logit=0)
    assert (
        sum(p.numel() for m in (heads.mask_head, heads.mask_predictor) for p in m.parameters())
        == n_parameters
    )
    assert heads.box_head.fc6.weight.shape == (1024, 256 * 49) and heads.box_head.fc7.weight.shape == (
        1024,
        1024,
    )


def test_what_is_said_of_anchors_is_ordered_as_they_are() -> None:
    maps = torch.arange(2.0 * 2 * 3 * 4 * 5).reshape(2, 6, 4, 5)  # two values for each of three ratios
    said = _by_anchor(maps, 2)
    assert said.shape == (2, 60, 2)
    for row, column, ratio, value in ((0, 4, 2, 1), (3, 1, 0, 0), (2, 3, 1, 1)):
        anchor = (row * 5 + column) * 3 + ratio
        assert torch.equal(said[:, anchor, value], maps[:, 2 * ratio + value, row, column])


def test_width_64_has_the_published_channels() -> None:
    with torch.device("meta"):
        network = TwoStageConfig(width=64).build(1, 1)
    assert network.rpn.conv.weight.shape == (512, 256, 3, 3)
    assert network.roi_heads.box_head.fc6.weight.shape == (1024, 256 * 49)
    assert network.roi_heads.mask_head.mask_fcn1.weight.shape == (256, 256, 3, 3)


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
@pytest.mark.parametrize("mask_head", ["lrs", "mask_rcnn"])
def test_resnets_segment_images_of_any_size(backbone: str, mask_head: str) -> None:
    values = {"type": "two_stage", "backbone": backbone, "mask_head": mask_head, "width": 2}
    config = NetworkConfig.from_dict({**values, "n_stages": 6, "finest_stride": 4}, "here")
    network = config.build(1, 1).eval()
    assert isinstance(network, TwoStage) and network.backbone.strides == (4, 8, 16, 32, 64)
    assert network.segment(torch.randn(1, 1, 2, 72, 40)).shape == (1, 1, 2, 72, 40)


@torch.no_grad()
def test_an_image_smaller_than_the_largest_anchor(trained: TwoStage) -> None:
    network = replace(SMALL, anchor_sizes=(8.0, 400.0)).build(1, 1).eval()
    network.load_state_dict(trained.state_dict())
    regions = network.find_regions(torch.randn(1, 1, 1, 8, 12))
    assert (
        regions.proposals.amax((0, 1)).le(torch.tensor([8, 12, 8, 12])).all() and regions.proposals.min() >= 0
    )
    assert network.segment(torch.randn(1, 1, 1, 8, 12)).isfinite().all()


@torch.no_grad()
def test_no_proposal_at_all_means_no_lesion(trained: TwoStage, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(codes: Tensor, anchors: Tensor) -> Tensor:
        return torch.zeros_like(codes) - 5  # beyond the image: no area is left

    monkeypatch.setattr(boxes, "decode", nowhere)
    regions = trained.find_regions(dots().image)
    assert not regions.proposal_scores.any() and not regions.scores.any()
    assert not trained.segment(dots().image).any()


def test_a_lesion_without_a_good_anchor_has_the_best_one() -> None:
    anchors = boxes.anchors((4, 4), 8, 16.0)
    lesion = torch.tensor([[[9.0, 9.0, 11.0, 12.0]]])
    assert boxes.overlap(anchors[None], lesion).max() < 0.1
    logits = torch.zeros(1, len(anchors), requires_grad=True)
    losses = proposal_losses(
        logits, torch.zeros(1, len(anchors), 4), anchors, lesion, torch.ones(1, 1, 32, 32)
    )
    losses["proposal"].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    best = boxes.overlap(anchors[None], lesion)[0, :, 0]
    assert torch.equal(logits.grad[0] < 0, best == best.max())
    assert logits.grad.clamp(max=0).sum().item() == pytest.approx(-0.25)  # half of the loss, of each a half
    assert losses["proposal_box"] > 0


def test_what_is_ignored_teaches_nothing() -> None:
    anchors = boxes.anchors((8, 8), 4, 6.0)
    valid = torch.ones(1, 1, 32, 32)
    valid[..., :16] = 0
    logits = torch.zeros(1, len(anchors), requires_grad=True)
    proposal_losses(logits, torch.zeros(1, len(anchors), 4), anchors, torch.zeros(1, 1, 4), valid)["proposal"].backward()  # type: ignore[no-untyped-call]  # fmt: skip
    assert logits.grad is not None
    centre = (anchors[:, 1] + anchors[:, 3]) / 2
    assert not logits.grad[0, centre < 16].any() and logits.grad[0, centre >= 16].any()


def test_regions_of_lesions_stand_first_and_are_a_third() -> None:
    torch.manual_seed(0)
    lesions = torch.tensor([[[4.0, 4, 8, 8], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
    near = lesions[:1, :1] + torch.rand(1, 60, 4)
    proposals = torch.cat((near, near + 12), 0)
    chosen = choose_regions(proposals, torch.ones(2, 60), lesions, torch.ones(2, 1, 32, 32))
    assert chosen.boxes.shape == (2, 48, 4)
    assert chosen.positive.sum(1).tolist() == [16, 0] and chosen.positive[0, :16].all()
    assert (boxes.overlap(chosen.boxes[:1, :16], lesions[:1, :1]) >= 0.5).all()
    assert torch.equal(chosen.lesions[0, :16], lesions[0, :1].expand(16, -1))
    assert chosen.counted[1].all()


def test_a_box_beside_a_lesion_counts_nowhere() -> None:
    lesion = torch.tensor([[[4.0, 4, 8, 8]]])
    proposals = lesion + torch.tensor([[0.0], [2], [12]])  # overlaps of 1, 1/7 and 0
    chosen = choose_regions(proposals, torch.ones(1, 3), lesion, torch.ones(1, 1, 32, 32))
    counted = {tuple(box) for box in chosen.boxes[chosen.counted].tolist()}
    assert counted == {(4, 4, 8, 8), (16, 16, 20, 20)}


def test_some_are_drawn_at_random() -> None:
    torch.manual_seed(0)
    able = torch.tensor([[True] * 6 + [False] * 4, [False] * 9 + [True]])
    drawn = torch.stack([draw_some(able, 3) for _ in range(60)])
    assert (drawn <= able).all()
    assert drawn.sum(-1).unique().tolist() == [1, 3]
    assert drawn.any(0).equal(able)


def test_the_heuristic_scores_begin_where_a_gradient_passes() -> None:
    head = ProposalHead(4, 6, relu=True, prior_logit=-4.6)
    logits, _ = head([torch.randn(1, 4, 3, 5)])
    assert logits.mean().item() == pytest.approx(-4.6, abs=0.2)
    logits.sum().backward()
    assert head.scores.bias.grad is not None and head.scores.bias.grad.all()
    plain = ProposalHead(4, 6, relu=False, prior_logit=-4.6)
    plain.load_state_dict(head.state_dict())
    with torch.no_grad():
        head.scores.bias.copy_(torch.tensor([-3.0, -9.0] * 3))
        plain.scores.bias.copy_(head.scores.bias)
    maps = [torch.zeros(1, 4, 2, 2)]
    assert not head(maps)[0].any() and (plain(maps)[0] == -6).all()


def test_all_losses_fall() -> None:
    torch.manual_seed(0)
    rows = train(SMALL.build(1, 1), dots(), 40)
    assert rows[0].keys() == {"proposal", "proposal_box", "region", "region_box", "mask"}
    for name in rows[0]:
        first, last = (sum(row[name] for row in part) for part in (rows[:10], rows[-10:]))
        assert last < 0.8 * first, name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": "resnet50"}, "backbone resnet50 needs n_stages 6 and finest_stride 4"),
        ({"finest_stride": 3}, "finest_stride must be a power of two up to 8, not 3"),
        ({"finest_stride": 16}, "finest_stride must be a power of two up to 8, not 16"),
        ({"anchor_sizes": []}, "anchor_sizes must be positive"),
        ({"anchor_sizes": [4, 0]}, "anchor_sizes must be positive"),
        ({"enlargement": 0.9}, "enlargement must be from 1 to 4"),
        ({"n_proposals": 0}, "n_proposals and n_regions must be at least 1"),
    ],
)
def test_a_wrong_choice_is_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(PwmlError, match=f"here: {words}"):
        NetworkConfig.from_dict({"type": "two_stage", **changes}, "here")
