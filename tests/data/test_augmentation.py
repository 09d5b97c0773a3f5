"""Random changes of images: each one does what it says, to masks as to images, and again when it is resumed."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage

from hf_papers.data.augmentation import Augmentation, AugmentationOptions, pixel_positions, sample
from hf_papers.errors import UserError


def images(batch: int = 4, channels: int = 2, height: int = 12, width: int = 17) -> torch.Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def changed(batch: torch.Tensor, masks: torch.Tensor | None = None, seed: int = 0, **options):
    return Augmentation(AugmentationOptions(**options))(batch, masks, torch.Generator().manual_seed(seed))


def test_nothing_changes_when_everything_is_off():
    batch = images()
    state = torch.get_rng_state()
    result, masks = Augmentation(AugmentationOptions())(batch)
    assert torch.equal(result, batch) and masks is None
    assert torch.equal(torch.get_rng_state(), state)  # a run without augmentation draws no numbers for it


def test_reading_at_the_pixels_own_positions_gives_the_image_back():
    batch = images()
    positions = pixel_positions(12, 17).expand(4, -1, -1, -1)
    torch.testing.assert_close(sample(batch, positions, "bilinear", "zeros"), batch, rtol=0, atol=1e-5)


def test_a_rotation_agrees_with_scipys_by_the_same_angle():
    batch = torch.zeros(1, 1, 31, 31)
    batch[..., 8:14, 15:25] = 1.0
    augmentation = Augmentation(AugmentationOptions(rotation=40, border="zeros"))
    result, _ = augmentation(batch, None, torch.Generator().manual_seed(3))
    drawn = torch.rand(1, generator=torch.Generator().manual_seed(3)).item()
    degrees = (2 * drawn - 1) * 40
    assert abs(degrees) > 5
    expected = ndimage.rotate(batch[0, 0].numpy(), degrees, reshape=False, order=1)
    torch.testing.assert_close(result[0, 0], torch.from_numpy(expected), rtol=0, atol=1e-4)


def test_enlarging_makes_things_larger():
    batch = torch.zeros(64, 1, 41, 41)
    batch[..., 15:26, 15:26] = 1.0
    result, _ = changed(batch, scaling=0.5, border="zeros")
    ratio = (result.sum((1, 2, 3)) / 121).sqrt()  # of the sides
    assert 1 / 1.5 - 0.05 < ratio.min() < 0.75 and 1.4 < ratio.max() < 1.55
    assert abs(ratio.log().mean()) < 0.1  # as often reduced as enlarged


def test_a_shift_is_in_pixels():
    batch = torch.zeros(200, 1, 21, 31)
    batch[..., 10, 15] = 1.0
    result, _ = changed(batch, translation=4, border="zeros")
    weights = result[:, 0]
    total = weights.sum((1, 2))
    x = (weights.sum(1) * torch.arange(31)).sum(1) / total - 15
    y = (weights.sum(2) * torch.arange(21)).sum(1) / total - 10
    for shift in (x, y):
        assert shift.abs().max() <= 4 + 1e-3 and shift.max() > 3 and shift.min() < -3
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 0.2  # the two are drawn apart


@pytest.mark.parametrize(("option", "axis"), [("horizontal_flip", -1), ("vertical_flip", -2)])
def test_flips_happen_in_half_of_the_cases(option, axis):
    batch = images(batch=200)
    result, _ = changed(batch, **{option: True})
    same = (result - batch).abs().amax((1, 2, 3)) < 1e-5
    mirrored = (result - batch.flip(axis)).abs().amax((1, 2, 3)) < 1e-5
    assert torch.all(same ^ mirrored) and 70 < same.sum() < 130


def test_shear_keeps_rows_level():
    batch = torch.zeros(8, 1, 21, 41)
    batch[..., 4, 20] = batch[..., 16, 20] = 1.0
    result, _ = changed(batch, shear=30, border="zeros")
    rows = result[:, 0].sum(2)
    torch.testing.assert_close(rows, batch[:, 0].sum(2), rtol=0, atol=1e-4)
    columns = torch.arange(41.0)
    lean = (result[:, 0, 4] * columns).sum(1) - (result[:, 0, 16] * columns).sum(1)
    assert lean.abs().max() > 2 and lean.abs().max() <= 12 * math.tan(math.radians(30)) + 1e-3


def test_bends_are_smooth_and_have_the_spread_asked_for():
    augmentation = Augmentation(AugmentationOptions(elastic_std=10, elastic_points=3))
    batch = torch.zeros(300, 1, 64, 48)
    shifts = augmentation.positions(batch, torch.Generator().manual_seed(0)) - pixel_positions(64, 48)
    corners = shifts[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # points of the coarse grid lie in the corners
    assert corners.std().item() == pytest.approx(10, rel=0.08) and abs(corners.mean()) < 1
    assert (shifts[:, 1:] - shifts[:, :-1]).abs().max() < 4


def test_masks_move_with_their_images_and_gain_no_classes():
    masks = torch.zeros(6, 40, 40, dtype=torch.long)
    masks[:, 10:20, 12:30] = 7
    masks[:, 24:33, 5:15] = 123_456_789
    batch = (masks > 0).float()[:, None]
    result, warped = changed(
        batch, masks, rotation=180, scaling=0.2, elastic_std=2, translation=3, horizontal_flip=True
    )
    assert warped.dtype == torch.long and set(warped.unique().tolist()) == {0, 7, 123_456_789}
    agree = ((warped > 0) == (result[:, 0] > 0.5)).float().mean()
    assert agree > 0.985 and not torch.equal(warped, masks)
    _, stacked = changed(
        batch, masks[:, None], rotation=180, scaling=0.2, elastic_std=2, translation=3, horizontal_flip=True
    )
    assert torch.equal(stacked[:, 0], warped)


def test_outside_lies_what_the_option_says():
    batch = torch.full((16, 1, 20, 20), 0.7)
    for border, lowest in (("reflection", 0.7), ("border", 0.7), ("zeros", 0.0)):
        result, _ = changed(batch, translation=10, border=border)
        assert result.min().item() == pytest.approx(lowest, abs=1e-5)


def test_values_change_about_the_mean_and_within_their_reach():
    batch = images(batch=300)
    brighter, _ = changed(batch, brightness=0.3)
    steps = (brighter - batch).mean((1, 2, 3))
    assert steps.abs().max() <= 0.3 + 1e-5 and steps.max() > 0.25 and steps.min() < -0.25
    spread, _ = changed(batch, contrast=1.0)
    torch.testing.assert_close(spread.mean((1, 2, 3)), batch.mean((1, 2, 3)))
    ratio = spread.std((1, 2, 3)) / batch.std((1, 2, 3))
    assert 0.5 - 1e-3 < ratio.min() < 0.6 and 1.8 < ratio.max() < 2 + 1e-3
    noisy, _ = changed(batch, noise=0.1)
    assert (noisy - batch).std().item() == pytest.approx(0.1, rel=0.02)
    bent, _ = changed(batch, gamma=0.5)
    torch.testing.assert_close(bent.amax((1, 2, 3)), batch.amax((1, 2, 3)))
    torch.testing.assert_close(bent.amin((1, 2, 3)), batch.amin((1, 2, 3)))
    order = batch[0].flatten().argsort()
    assert torch.all(bent[0].flatten()[order].diff() >= 0) and not torch.allclose(bent, batch, atol=1e-2)


def test_every_image_changes_in_its_own_way_and_a_flat_image_stays_finite():
    batch = images(batch=1).expand(5, -1, -1, -1)
    result, _ = changed(batch, rotation=30, contrast=0.5)
    assert len({tuple(image.flatten()[:5].tolist()) for image in result}) == 5
    flat, _ = changed(torch.ones(2, 1, 1, 1), rotation=30, gamma=0.5, contrast=0.5, elastic_std=1)
    assert torch.isfinite(flat).all()


def test_the_global_state_repeats_a_change():
    augmentation = Augmentation(AugmentationOptions(rotation=20, elastic_std=1, noise=0.1, contrast=0.2))
    torch.manual_seed(5)
    augmentation(images())
    state = torch.get_rng_state()
    first, _ = augmentation(images())
    torch.set_rng_state(state)
    again, _ = augmentation(images())
    assert torch.equal(first, again)


def test_impossible_settings_and_wrong_inputs_are_refused():
    for wrong in ({"rotation": -1}, {"noise": math.nan}, {"elastic_points": 1}, {"shear": 90}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            AugmentationOptions(**wrong)
    augmentation = Augmentation(AugmentationOptions(rotation=5))
    with pytest.raises(ValueError, match="floating-point"):
        augmentation(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="do not belong"):
        augmentation(images(), torch.zeros(4, 12, 16))


def test_several_layers_of_a_mask_move_together():
    layers = torch.arange(2 * 12 * 17.0).reshape(1, 2, 12, 17).expand(4, -1, -1, -1)
    _, moved = changed(images(), layers, rotation=30, elastic_std=2)
    assert moved.shape == layers.shape and not torch.equal(moved, layers)
    assert torch.equal(moved[:, 1], moved[:, 0] + 12 * 17)
