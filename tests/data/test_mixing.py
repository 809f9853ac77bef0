"""Mixup, cutmix and erasing against hand-computed values and timm's formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from illama.data.augment.batched import ErasingPlan, Mix, Mixing, RandomErasing, cut_box, normal_at, smooth_one_hot
from illama.data.rng import Draws, DrawShare, Purpose, numpy_generator, torch_generator
from illama.optional import import_timm


def _mixing(**changes: float) -> Mixing:
    settings = {"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5, "label_smoothing": 0.1, "num_classes": 4}
    return Mixing(**{**settings, **changes})  # type: ignore[arg-type]


def test_mixup_by_hand() -> None:
    images = torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1).expand(3, 2, 2, 2).clone()
    mixed, targets = _mixing().apply(images, torch.tensor([0, 1, 3]), Mix(0.75))
    assert mixed[:, 0, 0, 0].tolist() == [0.75 * 1 + 0.25 * 5, 2.0, 0.75 * 5 + 0.25 * 1]
    # smoothing 0.1 over 4 classes: 0.925 on, 0.025 off; then three quarters and one quarter
    expected = [
        [0.75 * 0.925 + 0.25 * 0.025, 0.025, 0.025, 0.75 * 0.025 + 0.25 * 0.925],
        [0.025, 0.925, 0.025, 0.025],
        [0.75 * 0.025 + 0.25 * 0.925, 0.025, 0.025, 0.75 * 0.925 + 0.25 * 0.025],
    ]
    torch.testing.assert_close(targets, torch.tensor(expected))


def test_cutmix_by_hand() -> None:
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    mixed, targets = _mixing(label_smoothing=0.0).apply(images, torch.tensor([2, 1]), Mix(13 / 16, (0, 1, 1, 4)))
    expected = torch.zeros(4, 4)
    expected[0, 1:] = 1
    assert torch.equal(mixed[0, 0], expected)
    assert torch.equal(mixed[1, 0], 1 - expected)
    torch.testing.assert_close(targets, torch.tensor([[0, 3 / 16, 13 / 16, 0], [0, 13 / 16, 3 / 16, 0]]))


def test_box_by_hand() -> None:
    # 1 - share = 0.25: half of each side; an odd side leans towards the end
    assert cut_box(8, 12, 0.75, 4, 6) == (2, 6, 3, 9)
    assert cut_box(10, 10, 0.75, 5, 5) == (3, 8, 3, 8)
    assert cut_box(8, 8, 0.75, 0, 7) == (0, 2, 5, 8)
    assert cut_box(8, 8, 1.0, 3, 3) == (3, 3, 3, 3)


@pytest.mark.parametrize(
    ("mixup", "cutmix", "prob", "switch_prob"), [(0.8, 1.0, 1.0, 0.5), (0.1, 0.0, 0.7, 0.5), (0.0, 0.4, 0.5, 0.5)]
)
def test_same_numbers_as_timm(
    mixup: float, cutmix: float, prob: float, switch_prob: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With timm's draws replaced by ours, images and targets agree."""
    import_timm()
    from timm.data import mixup as theirs

    ours = _mixing(mixup=mixup, cutmix=cutmix, prob=prob, switch_prob=switch_prob)
    kinds = set()
    for step in range(30):
        generator = numpy_generator(Purpose.MIX, 0, step, 0)
        twin = numpy_generator(Purpose.MIX, 0, step, 0)
        monkeypatch.setattr(theirs.np.random, "rand", twin.random)
        monkeypatch.setattr(theirs.np.random, "beta", twin.beta)
        monkeypatch.setattr(theirs.np.random, "randint", lambda low, high, size, twin=twin: twin.integers(high))
        reference = theirs.Mixup(mixup, cutmix, None, prob, switch_prob, "batch", True, 0.1, 4)
        images = torch.randn(6, 3, 16, 20, generator=torch.Generator().manual_seed(step))
        labels = torch.arange(6) % 4
        mix = ours.draw(generator, 16, 20)
        kinds.add("none" if mix.share == 1 else "mixup" if mix.box is None else "cutmix")
        expected = reference(images.clone(), labels)
        got = ours.apply(images.clone(), labels, mix)
        torch.testing.assert_close(got[0], expected[0])
        torch.testing.assert_close(got[1], expected[1])
    on = {name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha > 0}
    assert kinds == on | ({"none"} if prob < 1 else set())


def test_targets_sum_to_one() -> None:
    mixing = _mixing()
    for step in range(20):
        mix = mixing.draw(numpy_generator(Purpose.MIX, 3, step, 0), 9, 9)
        _, targets = mixing.apply(torch.randn(5, 3, 9, 9), torch.tensor([0, 1, 2, 3, 0]), mix)
        torch.testing.assert_close(targets.sum(1), torch.ones(5))
    assert smooth_one_hot(torch.tensor([1]), 2, 0.0).tolist() == [[0.0, 1.0]]


def test_off_means_none() -> None:
    from illama.recipes import AugmentConfig

    assert Mixing.of(AugmentConfig(), 10) is None
    assert Mixing.of(AugmentConfig(cutmix=0.5), 10) is not None
    assert RandomErasing.of(AugmentConfig()) is None


@pytest.mark.parametrize(("mode", "count"), [("pixel", 1), ("rand", 3), ("const", 2)])
def test_erasing_keeps_its_rules(mode: str, count: int) -> None:
    erase = RandomErasing(0.25, mode, count)
    boxes = erase.draw(Draws([torch_generator(Purpose.ERASE, 0, 0, 0)], DrawShare(20_000)), 32, 24).boxes
    h, w = boxes[..., 1] - boxes[..., 0], boxes[..., 3] - boxes[..., 2]
    used = (h * w) > 0
    assert used.any(1).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert boxes.min() >= 0
    assert boxes[..., 1].max() <= 32
    assert boxes[..., 3].max() <= 24
    number = used.sum(1)[used.any(1)]
    assert sorted(number.unique().tolist()) == list(range(1, count + 1))
    share = (h * w)[used.any(1)].sum(1) / (32 * 24)
    assert share.max() < 0.40  # a third, and the rounding of small boxes
    assert share.mean().item() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    aspect = (h / w.clamp(min=1))[used & (w > 4) & (h > 4)]
    assert aspect.max() < 3.9
    assert aspect.min() > 0.25


def test_erasing_fills_the_box_and_nothing_else() -> None:
    images = torch.full((64, 3, 16, 16), 9.0)
    for mode in ("pixel", "rand", "const"):
        erase = RandomErasing(0.5, mode, 1)
        plan = erase.draw(Draws([torch_generator(Purpose.ERASE, 5, 0, 0)], DrawShare(64)), 16, 16)
        out, boxes = erase.apply(images.clone(), plan), plan.boxes
        for image, (top, bottom, left, right) in zip(out, boxes[:, 0].tolist(), strict=True):
            inside = torch.zeros(16, 16, dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert (image[:, ~inside] == 9).all()
            block = image[:, top:bottom, left:right]
            assert not (block == 9).any()
            if block.numel() and mode != "pixel":
                assert (block == block[:, :1, :1]).all()
        changed = out[out != 9]
        if mode == "const":
            assert changed.abs().max() == 0
        else:
            assert changed.std().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("mode", ["pixel", "rand"])
def test_what_fills_a_box_depends_on_the_image_alone(mode: str) -> None:
    """Not on its neighbours in the batch, nor on the way: here, where few pixels are, and on devices, where all are."""
    erase = RandomErasing(0.7, mode, 2)
    plan = erase.draw(Draws([torch_generator(Purpose.ERASE, 1, 0, 0)], DrawShare(40)), 12, 10)
    images = torch.randn(40, 3, 12, 10)
    whole = erase.apply(images.clone(), plan)
    some = torch.tensor([7, 3, 39])
    assert torch.equal(erase.apply(images[some], ErasingPlan(plan.boxes[some], plan.seeds[some])), whole[some])
    place = torch.arange(360).view(3, 12, 10)
    everywhere = normal_at(plan.seeds[:, None, None, None], place)
    if mode == "pixel":
        changed = whole != images
        assert torch.equal(whole[changed], everywhere[changed])


def test_noise_is_normal_and_its_neighbours_know_nothing_of_each_other() -> None:
    from scipy import stats

    noise = normal_at(torch.arange(300)[:, None] * 2**40 + 5, torch.arange(3000))
    assert noise.abs().max() < 5.9
    assert stats.kstest(noise.flatten().numpy(), "norm").statistic < 0.0015  # 900,000 numbers: 1.4e-3 at 5 %
    for one, other in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise[1:, 1:], noise[:-1, :-1])):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.004
        assert abs(torch.corrcoef(torch.stack([one.flatten() ** 2, other.flatten() ** 2]))[0, 1]) < 0.004


def test_draws_depend_on_the_key_alone() -> None:
    torch.manual_seed(1)
    first = torch.rand(3, generator=torch_generator(Purpose.AUGMENT, 0, 5))
    torch.manual_seed(2)
    assert torch.equal(first, torch.rand(3, generator=torch_generator(Purpose.AUGMENT, 0, 5)))
    keys = [(p, s, k) for p in (Purpose.AUGMENT, Purpose.MIX) for s in (0, 1) for k in (0, 1, 2)]
    assert len({numpy_generator(*key).integers(2**62) for key in keys}) == len(keys)
    assert isinstance(numpy_generator(Purpose.MIX, 0), np.random.Generator)
