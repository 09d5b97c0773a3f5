"""How U-Net is trained: eq. 2 against its definition, masks as people store them, tiles, scores and starts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import ndimage
from transformers import pipeline

from hf_papers.data import Augmentation, AugmentationOptions
from hf_papers.data.cells import draw_cells
from hf_papers.errors import UserError
from hf_papers.metrics.segmentation import cells_of, dice, pixel_error
from hf_papers.papers.unet import PAPER
from hf_papers.papers.unet.configuration_unet import PaperUnetConfig
from hf_papers.papers.unet.image_processing_unet import PaperUnetImageProcessor
from hf_papers.papers.unet.masks_unet import MaskReader
from hf_papers.papers.unet.modeling_unet import PaperUnetForSemanticSegmentation
from hf_papers.papers.unet.pairs_unet import find_pairs
from hf_papers.papers.unet.pictures_unet import cells_in_colour, errors_in_colour, telling_maps
from hf_papers.papers.unet.scoring_unet import THRESHOLDS, best_of, score_curves
from hf_papers.papers.unet.weight_map_unet import border_weights, cells_apart, class_weights
from hf_papers.papers.vae.modeling_vae import PaperVaeConfig, PaperVaeModel
from hf_papers.training.finish import evaluate_run, run_recipe
from hf_papers.training.recipe import load_recipe, load_run_recipe
from hf_papers.training.run import Run
from hf_papers.training.task import Context
from hf_papers.training.trainer import Trainer


pytest_plugins = ["tests.hub.fixtures"]
CONTEXT = Context(torch.device("cpu"), rank=0, world_size=1, seed=0)


def some_cells(size: int = 48, seed: int = 0) -> np.ndarray:
    """Numbered cells with gaps between them, (size, size)."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 3)
    return cells_of(noise > 0.02)


# --------------------------------------------------------------------------------------------------------- weight map


@pytest.mark.parametrize("sigma", [2.0, 5.0])
def test_the_weight_map_is_eq_2_by_brute_force(sigma: int):
    cells = some_cells()
    places = [np.argwhere(cells == number) for number in range(1, cells.max() + 1)]
    assert len(places) > 3
    expected = np.zeros(cells.shape)
    for y, x in np.argwhere(cells == 0):
        distances = sorted(np.hypot(*(place - (y, x)).T).min() for place in places)
        expected[y, x] = 10 * math.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2))
    found = border_weights(cells, 10.0, sigma)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.max() > 3


def test_inside_cells_eq_2_counts_from_their_own_border():
    cells = some_cells()
    places = {number: np.argwhere(cells == number) for number in range(1, cells.max() + 1)}
    outside = {number: np.argwhere(cells != number) for number in places}
    expected = border_weights(cells, 10.0, 5.0)
    for y, x in np.argwhere(cells > 0):
        own = cells[y, x]
        distances = sorted(
            np.hypot(*((outside if number == own else places)[number] - (y, x)).T).min() for number in places
        )
        expected[y, x] = 10 * math.exp(-((distances[0] + distances[1]) ** 2) / 50)
    found = border_weights(cells, 10.0, 5.0, inside_cells=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[cells > 0].max() > 1


def test_the_weight_map_of_fewer_than_two_cells_is_flat():
    cells = np.zeros((20, 20), int)
    assert not border_weights(cells).any()
    cells[5:9, 5:9] = 1
    assert not border_weights(cells).any()
    cells[5:9, 11:15] = 7  # numbers need not follow each other
    weights = border_weights(cells)
    assert weights[6, 9] == pytest.approx(10 * math.exp(-9 / 50)) and weights[6, 6] == 0.0


def test_class_weights_give_every_class_the_same_share():
    weights = class_weights(np.array([750, 200, 50, 0]))
    np.testing.assert_allclose(weights[:3] * [750, 200, 50], 1000 / 3)
    assert weights[3] == 1.0
    assert class_weights(np.array([0, 3])).tolist() == [1.0, 1.0]


def test_touching_cells_are_kept_apart_and_others_left_alone():
    cells = np.zeros((12, 20), np.int32)
    cells[2:10, 2:8], cells[2:10, 8:14], cells[4:8, 16:19] = 1, 2, 3
    apart = cells_apart(cells)
    assert cells_of(cells).max() == 2 and cells_of(apart).max() == 3
    assert not apart[:, 7:9].any() and (apart[2:10, 2:7] == 1).all() and (apart[2:10, 9:14] == 2).all()
    np.testing.assert_array_equal(apart == 3, cells == 3)
    diagonal = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]], np.int32)
    assert (cells_apart(diagonal) > 0).sum() == 6  # cells that meet at a corner touch too


def test_a_map_that_was_warped_with_its_mask_is_nearly_that_of_the_warped_mask():
    """The weights are computed once and travel with the mask: the mistake is small against the weights themselves."""
    cells = cells_apart(draw_cells(0, 256)[1].astype(np.int32))
    layers = torch.from_numpy(np.stack([cells, border_weights(cells)])).float()
    options = AugmentationOptions(elastic_std=5, rotation=180, scaling=0.1)  # those of isbi.yaml, on its tile
    images = torch.zeros(3, 1, 256, 256)
    _, warped = Augmentation(options)(images, layers.repeat(3, 1, 1, 1), torch.Generator().manual_seed(0))
    inner = slice(20, -20), slice(20, -20)  # mirrored edges bring cells that the first map did not know
    for mask, weights in warped.numpy():
        assert not weights[mask > 0].any(), "no pixel of a cell has the weight of the background beside it"
        ground = mask[inner] == 0
        anew, carried = border_weights(mask.astype(np.int32))[inner][ground], weights[inner][ground]
        assert np.abs(anew - carried).mean() < 0.15 * anew.mean()
        assert np.corrcoef(anew, carried)[0, 1] > 0.98


# -------------------------------------------------------------------------------------------------------------- masks


def read(array, num_labels: int = 2, **options) -> np.ndarray:
    mask = Image.fromarray(array) if isinstance(array, np.ndarray) else array
    size = (mask.height, mask.width)
    return MaskReader(options.pop("kind", "classes"), num_labels, options.pop("values", None))(mask, size)[0]


class TestMaskValues:
    """milesial/Pytorch-UNet#173 and others: masks of 0 and 255 were learnt as class 255, and Dice stayed at 0."""

    mask = (some_cells(24) > 0).astype(np.uint8)

    def test_every_way_of_storing_a_binary_mask_gives_the_same(self):
        palette = Image.fromarray(self.mask, "P")
        palette.putpalette([0, 0, 0, 255, 0, 0] + [9] * 762)
        ways = [
            self.mask,
            self.mask * 255,
            self.mask.astype(bool),
            palette,
            Image.fromarray(self.mask * 255).convert("1"),
        ]
        ways += [np.stack([self.mask * 255] * 3, -1), Image.fromarray(self.mask * 255).convert("RGBA")]
        ways += [Image.fromarray(self.mask.astype(np.uint16) * 255), Image.fromarray(self.mask * 255).convert("LA")]
        for way in ways:
            np.testing.assert_array_equal(read(way), self.mask)

    def test_masks_that_hold_one_value_only_are_understood(self):
        for value, expected in ((0, 0), (1, 1), (255, 1)):
            assert (read(np.full((5, 5), value, np.uint8)) == expected).all()

    def test_class_numbers_stay_as_they_are(self):
        classes = np.array([[0, 1], [2, 3]], np.uint8)
        np.testing.assert_array_equal(read(classes, 4), classes)

    def test_other_values_are_refused_with_what_was_found(self):
        wrong = np.array([[0, 128], [255, 255]], np.uint8)
        with pytest.raises(ValueError, match="holds 0, 128, 255 instead of 0 and 1, or 0 and 255.*--mask_values"):
            read(wrong)
        with pytest.raises(ValueError, match="holds 1, 2 instead of .* add --mask_values 1,2"):
            read(np.array([[1, 2]], np.uint8))
        with pytest.raises(ValueError, match="holds 0, 128, 255 instead of the classes 0 to 3"):
            read(wrong, 4)
        jpeg = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
        with pytest.raises(ValueError, match=r"25 values \(0, 10, 20, 30, 40, … 240\).*JPEG"):
            read(jpeg)

    def test_values_can_be_named(self):
        np.testing.assert_array_equal(read(np.array([[255, 0, 128]], np.uint8), 3, values=(128, 0, 255)), [[2, 1, 0]])
        with pytest.raises(ValueError, match="holds the value 7, which is not among --mask_values 1, 2"):
            read(np.array([[1, 7]], np.uint8), values=(1, 2))

    def test_instances_become_cells_that_are_apart(self):
        cells = np.zeros((8, 12), np.uint16)
        cells[1:7, 1:6], cells[1:7, 6:11] = 300, 900
        classes, numbered = MaskReader("instances", 2)(Image.fromarray(cells), (8, 12))
        assert set(np.unique(numbered)) == {0, 300, 900} and cells_of(classes).max() == 2

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (np.zeros((4, 6), np.uint8), "4x6 pixels and its image 8x12"),
            (None, "has no mask"),
            (np.eye(8, 12, dtype=np.float32) * 0.5, "whole numbers"),
            (np.stack([np.arange(96).reshape(8, 12) % k for k in (2, 3, 5)], -1).astype(np.uint8), "has colours"),
        ],
    )
    def test_what_is_no_mask_of_the_image_is_refused_in_words(self, mask, message: str):
        with pytest.raises(ValueError, match=message):
            MaskReader("classes", 2)(Image.fromarray(mask) if isinstance(mask, np.ndarray) else mask, (8, 12))


# ------------------------------------------------------------------------------------------------ folders of pairs


def write_pairs(folder: Path, count: int = 6, ending: str = "", size: tuple[int, int] = (40, 33)) -> Path:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        cells = some_cells(48, number)[: size[0], : size[1]] > 0
        noise = np.random.default_rng(number).integers(0, 60, (*cells.shape, 3))
        Image.fromarray((cells[..., None] * 150 + noise).astype(np.uint8)).save(
            folder / "images" / f"cell{number}.png"
        )
        Image.fromarray(cells.astype(np.uint8) * 255).save(folder / "masks" / f"cell{number}{ending}.png")
    return folder


@pytest.mark.parametrize("ending", ["", "_mask"])
def test_pairs_are_found_by_their_names(tmp_path: Path, ending: str):
    pairs = find_pairs(write_pairs(tmp_path, 3, ending))
    assert [(image.stem, mask.stem) for image, mask in pairs] == [(f"cell{n}", f"cell{n}{ending}") for n in range(3)]


def test_a_pair_that_lacks_a_half_is_named(tmp_path: Path):
    write_pairs(tmp_path, 3)
    (tmp_path / "masks" / "cell1.png").rename(tmp_path / "masks" / "other.png")
    with pytest.raises(UserError, match="There is no mask for .*cell1.png"):
        find_pairs(tmp_path)
    (tmp_path / "images" / "cell1.png").unlink()
    with pytest.raises(UserError, match="There is no image for .*other.png"):
        find_pairs(tmp_path)
    Image.new("L", (3, 3)).save(tmp_path / "images" / "cell0.bmp")
    with pytest.raises(UserError, match="same name"):
        find_pairs(tmp_path)


def test_ones_own_folder_of_pictures_trains_by_one_command(tmp_path: Path):
    folder = write_pairs(tmp_path / "mine")
    options = {"dataset": str(folder), "max_steps": "2", "per_device_train_batch_size": "2", "tile_size": "32"}
    options |= {"stage_channels": "4,8", "output_dir": str(tmp_path / "run"), "report_to": "none", "progress": "false"}
    run = run_recipe(load_recipe("unet", "images", options))
    task = load_recipe("unet", "images", options).task_class(load_recipe("unet", "images", options))
    assert task.source.num_rows("train[20%:]") == 5 and len(task.examples("validation")) == 1
    assert {path.name for path in (run / "figures").iterdir()} >= {"predictions.png", "feature_maps.png"}
    model = PaperUnetForSemanticSegmentation.from_pretrained(run)
    assert model.config.num_channels == 3 and model.config.id2label == {0: "background", 1: "foreground"}


def test_a_folder_may_have_splits_and_damaged_files(tmp_path: Path):
    for split in ("train", "test"):
        write_pairs(tmp_path / split, 3)
    options = {"dataset": str(tmp_path), "mask_kind": "classes", "validation_split": "none", "test_split": "test"}
    task = task_of(tmp_path, **options)
    assert sorted(task.source.splits()) == ["test", "train"]
    assert len(task.examples("test")) == 3
    path = tmp_path / "train" / "images" / "cell2.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cell2.png cannot be read as a picture"):
        list(task.source.rows("train"))


def test_a_mask_of_another_size_stops_the_training_in_words(tmp_path: Path):
    folder = write_pairs(tmp_path / "mine", 4)
    Image.new("L", (10, 12)).save(folder / "masks" / "cell3.png")
    task = task_of(tmp_path, dataset=str(folder), mask_kind="classes", train_split="train", validation_split="none")
    with pytest.raises(UserError, match=r"split 'train' of .*: A mask has 12x10 pixels and its image 40x33"):
        next(task.batches({}, CONTEXT))


# --------------------------------------------------------------------------------------------------------- the task


def small_recipe(tmp_path: Path, recipe: str = "embedded", **overrides: str):
    options = {
        "output_dir": str(tmp_path / "run"),
        "report_to": "none",
        "progress": "false",
        "stage_channels": "4,8",
        "tile_size": "64",
        "max_steps": "4",
        "eval_steps": "2",
        "train_split": "train[:6]",
        "validation_split": "validation[:2]",
        "test_split": "test[:2]",
    }
    return load_recipe("unet", recipe, options | overrides)


def task_of(tmp_path: Path, **overrides: str):
    recipe = small_recipe(tmp_path, **overrides)
    return recipe.task_class(recipe)


def test_every_recipe_is_valid_and_says_what_it_is():
    for name in PAPER.recipes:
        recipe = load_recipe("unet", name)
        assert recipe.description and recipe.estimate, name
        geometry = recipe.config.geometry
        assert geometry.fits(recipe.task.tile_size), name
    paper = load_recipe("unet", "paper")
    assert paper.config.to_dict() == PaperUnetConfig().to_dict()
    assert (paper.training.optimizer, paper.training.momentum) == ("sgd", 0.99)
    assert paper.training.per_device_train_batch_size == 1
    assert (paper.task.border_weight, paper.task.border_sigma, paper.task.elastic_std, paper.task.elastic_points) == (
        10, 5, 10, 3,
    )  # fmt: skip


def test_the_ablations_differ_from_isbi_in_one_thing():
    isbi = load_recipe("unet", "isbi").to_dict()
    for name, section, option in (
        ("isbi-no-skips", "model", "skip_connections"),
        ("isbi-no-weight-map", "task", "weight_map"),
    ):
        other = load_recipe("unet", name).to_dict()
        assert isbi[section].pop(option) is True and other[section].pop(option) is False
        assert all(isbi[part] == other[part] for part in ("model", "task", "data", "training")), name
        isbi[section][option] = True


def test_the_hold_out_of_isbi_shares_no_slice_with_the_training():
    for name in ("isbi", "isbi-gpu", "isbi-no-skips", "isbi-no-weight-map", "paper"):
        data = load_recipe("unet", name).data
        assert (data.train_split, data.validation_split, data.test_split) == (
            "train[:21]",
            "train[21:24]",
            "train[24:]",
        )


def test_isbi_is_read_from_the_hub_and_its_secret_labels_are_refused(real_data_hub, tmp_path: Path):
    recipe = load_recipe("unet", "isbi", {"output_dir": str(tmp_path / "run")})
    task = recipe.task_class(recipe)
    batch = next(task.batches({}, CONTEXT))
    assert batch["pixels"].shape == (2, 1, 256, 256) and set(batch["targets"][:, 0].unique().tolist()) == {0.0, 1.0}
    assert [len(task.examples(role)) for role in ("validation", "test")] == [3, 6]
    assert 0.1 < np.mean([(example.classes == 0).mean() for example in task.examples("test")]) < 0.3  # membranes
    secret = load_recipe("unet", "isbi", {"output_dir": str(tmp_path / "run"), "test_split": "test"})
    with pytest.raises(UserError, match="has no mask"):
        secret.task_class(secret).examples("test")


def test_batches_are_tiles_with_their_class_and_weight(tmp_path: Path):
    task = task_of(tmp_path)
    batch = next(task.batches({}, CONTEXT))
    assert batch["pixels"].shape == (4, 1, 64, 64) and batch["targets"].shape == (4, 2, 64, 64)
    assert set(batch["targets"][:, 0].unique().tolist()) == {0.0, 1.0}
    assert batch["targets"][:, 1].max() > 5 and not batch["targets"][:, 1][batch["targets"][:, 0] == 1].any()
    assert batch["pixels"].max() > 100
    assert task.class_weights.shape == (2,) and task.class_weights[0] > task.class_weights[1]  # more cell than ground
    plain = task_of(tmp_path, weight_map="false")
    batch = next(plain.batches({}, CONTEXT))
    assert batch["targets"].shape == (4, 1, 64, 64) and plain.class_weights is None


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_tiles_come_from_everywhere_in_the_image(tmp_path: Path, padding: str):
    """milesial/Pytorch-UNet#64: the loader cut every square from the left, and the published score was measured so."""
    task = task_of(tmp_path, padding=padding, batch_norm="false", tile_size="50" if padding == "valid" else "64")
    size, border = task.geometry.output_size(task.options.tile_size), task.geometry.border
    numbered = torch.arange(100.0).repeat(70, 1)[None]
    torch.manual_seed(0)
    outputs = []
    for _ in range(200):
        tile = task.cut({"pixels": [numbered], "targets": [numbered]})
        assert torch.equal(tile["pixels"], tile["targets"])
        row = tile["pixels"][0, 0, 0, border : border + size]
        assert torch.equal(row, torch.arange(row[0], row[0] + size))  # the output's part is never mirrored
        outputs.append((row[0].item(), row[-1].item()))
    firsts, lasts = zip(*outputs, strict=True)
    assert min(firsts) == 0 and max(lasts) == 99
    left_half = sum(first < (100 - size) / 2 for first in firsts)
    assert 70 < left_half < 130


def test_an_image_smaller_than_a_tile_is_mirrored(tmp_path: Path):
    task = task_of(tmp_path, batch_norm="false")
    image = torch.rand(1, 20, 64)
    tile = task.cut({"pixels": [image], "targets": [image]})["pixels"][0, 0]
    assert torch.equal(tile[22:42], image[0]) and torch.equal(tile[21], tile[23]) and torch.equal(tile[42], tile[40])


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_loss_is_eq_1_with_the_weights_of_eq_2(tmp_path: Path, padding: str):
    options = {"rotation": "0", "scaling": "0", "horizontal_flip": "false", "elastic_std": "0"}
    options |= {"brightness": "0", "contrast": "0", "noise": "0", "padding": padding, "dropout": "0"}
    task = task_of(tmp_path, **options)
    model = task.build_model()
    batch = next(task.batches({}, CONTEXT))
    _, loss, metrics = next(task.losses({"model": model}, {}, batch, step=0))
    border = task.geometry.border
    inner = slice(border, 64 - border), slice(border, 64 - border)
    labels, weights = batch["targets"][:, 0][:, *inner].long(), batch["targets"][:, 1][:, *inner]
    seen = PaperUnetImageProcessor()(list(batch["pixels"].byte().numpy()), do_pad=False, return_tensors="pt")
    log_likelihood = model(seen["pixel_values"]).logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    expected = -((task.class_weights[labels] + weights) * log_likelihood).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert 0 <= metrics["pixel_error"] <= 1


def test_random_changes_move_masks_with_their_images(tmp_path: Path):
    task = task_of(tmp_path, brightness="0", contrast="0", noise="0", elastic_std="4")
    cells = torch.from_numpy((some_cells(64) > 0).astype(np.float32))
    seen = {}

    class Network(torch.nn.Module):
        def forward(self, pixel_values, labels, pixel_weights):
            seen.update(pixels=pixel_values[:, 0] * 0.25 + 0.5, labels=labels, weights=pixel_weights)
            return PaperUnetForSemanticSegmentation(task.config)(pixel_values, labels, pixel_weights)

    task.class_weights = torch.tensor([1.0, 1.0])
    batch = {
        "pixels": cells.expand(4, 1, -1, -1) * 255,
        "targets": torch.stack([cells, cells * 3]).expand(4, -1, -1, -1),
    }
    next(task.losses({"model": Network()}, {}, batch, step=0))
    assert not torch.equal(seen["labels"][0], cells.long())
    agree = ((seen["pixels"] > 0.5) == (seen["labels"] > 0)).float().mean()
    assert agree > 0.97
    assert torch.equal(seen["weights"], 1 + 3 * seen["labels"].float())


def test_the_trainer_trains_it_and_leaves_it_in_training_mode_after_validation(tmp_path: Path):
    """milesial/Pytorch-UNet#165: after the first validation the network stayed in eval mode, without dropout."""
    recipe = small_recipe(tmp_path, max_steps="30", eval_steps="10", learning_rate="1e-2", dropout="0.2")
    trainer = Trainer(recipe.task_class(recipe), Run(Path(recipe.output_dir)))
    trainer.prepare()
    before = trainer.evaluate(trainer.model, "validation")
    modes = []
    trainer.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trainer.train()
    after = trainer.evaluate(trainer.model, "test")
    trainer.end()
    assert set(before) == {"dice", "iou", "pixel_error", "threshold"}
    assert set(after) == {"dice", "iou", "pixel_error", "rand_error", "warping_error"}
    assert after["dice"] > max(0.7, before["dice"] - 0.2)
    assert trainer.model.training and all(part.training for part in trainer.model.modules())
    validations = [number for number, training in enumerate(modes) if not training]
    assert modes[-1] is False and sum(modes) == 30
    assert any(modes[number + 1 :].count(True) for number in validations[:1]), "it trained on after a validation"


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path):
    """Places of tiles, bends, noise and dropout are drawn again as if nothing had happened."""
    options = {"save_steps": "3", "max_steps": "6", "eval_steps": "6", "dropout": "0.3"}
    whole = run_recipe(small_recipe(tmp_path, **options))
    part = shutil.copytree(whole, tmp_path / "part")
    shutil.rmtree(part / "checkpoints" / "checkpoint-00000006")
    (part / "model.safetensors").unlink()
    run_recipe(small_recipe(tmp_path, output_dir=str(part), resume="auto", **options))
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, part))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_column_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="'train.*' of 'embedded:cells': A mask holds .* values"):
        next(task_of(tmp_path, columns="mask=image", mask_kind="classes").batches({}, CONTEXT))
    with pytest.raises(UserError, match="no column 'msk'"):
        next(task_of(tmp_path, columns="mask=msk").batches({}, CONTEXT))


def test_dice_is_the_mean_of_the_images_own_and_not_that_of_all_pixels():
    """milesial/Pytorch-UNet counted a batch as one image: a large object then hides that a small one is missed."""
    large, small = np.zeros((2, 64, 64), np.uint8)
    large[:60], small[:4, :4] = 1, 1
    found = [np.stack([1.0 - large, 1.0 * large]), np.stack([np.ones_like(small), 0.0 * small])]
    examples = [type("E", (), {"classes": mask, "cells": cells_of(mask)}) for mask in (large, small)]
    curves = score_curves(zip(found, examples, strict=True), [0.5], cell_errors=False)
    assert curves["dice"][0.5] == pytest.approx((1.0 + 0.0) / 2)
    assert dice(np.stack([large, 0 * small]).reshape(128, 64), np.stack([large, small]).reshape(128, 64)) > 0.99


def test_what_the_run_reports_is_what_a_user_gets(tmp_path: Path):
    """milesial/Pytorch-UNet#64 again: a number measured under one loader was kept under another. Ours is measured again
    from the saved files, and by the pipeline, on the pictures themselves."""
    run = run_recipe(small_recipe(tmp_path, max_steps="20", eval_steps="20", learning_rate="1e-2"))
    task = small_recipe(tmp_path).task_class(small_recipe(tmp_path))
    results = json.loads((run / "results.json").read_text())
    again = evaluate_run(run)
    assert again["test"] == pytest.approx(results["metrics"]["test"], rel=1e-4)
    threshold = results["metrics"]["validation"]["threshold"]
    assert PaperUnetImageProcessor.from_pretrained(run).threshold == pytest.approx(threshold)
    segment = pipeline("image-segmentation", model=str(run))
    scores = []
    for row in task.source.rows("validation[:2]"):
        parts = {part["label"]: np.asarray(part["mask"]) > 0 for part in segment(row["image"], subtask="semantic")}
        classes, _ = task.read_mask(row["mask"], (128, 128))
        scores.append(dice(parts.get("cell", np.zeros((128, 128))), classes))
    assert np.mean(scores) == pytest.approx(results["metrics"]["validation"]["dice"], abs=2e-3)


def test_thresholds_are_chosen_where_they_are_best():
    curves = {"dice": {0.3: 0.5, 0.6: 0.8}, "rand_error": {0.3: 0.1, 0.6: 0.4}}
    assert best_of(curves) == {"dice": 0.6, "rand_error": 0.3}


def test_the_test_split_has_no_say_in_its_thresholds(tmp_path: Path):
    task = task_of(tmp_path)
    model = task.build_model().eval()
    with torch.no_grad():
        metrics = task.evaluate(model, "test", CONTEXT)
        chosen = best_of(score_curves(task.predictions(model, "validation", CONTEXT, 1), THRESHOLDS, cell_errors=True))
        for name, threshold in chosen.items():
            curve = score_curves(task.predictions(model, "test", CONTEXT, 1), [threshold], cell_errors=True)[name]
            assert metrics[name] == curve[threshold]


def test_without_a_validation_split_a_pixel_counts_from_one_half_on(tmp_path: Path):
    task = task_of(tmp_path, validation_split="none")
    model = task.build_model().eval()
    with torch.no_grad():
        metrics = task.evaluate(model, "test", CONTEXT)
        pairs = list(task.predictions(model, "test", CONTEXT, 1))
        assert task.evaluate(model, "validation", CONTEXT) == {}
    errors = [pixel_error(probabilities[1] >= 0.5, example.classes) for probabilities, example in pairs]
    assert metrics["pixel_error"] == pytest.approx(np.mean(errors)) and task.processor.threshold == 0.5


def test_more_than_two_classes_are_learnt_and_scored(tmp_path: Path):
    folder = write_pairs(tmp_path / "mine")
    for path in (folder / "masks").iterdir():
        mask = np.asarray(Image.open(path)) // 255
        mask[: len(mask) // 2] *= 2
        Image.fromarray(mask).save(path)
    options = {"dataset": str(folder), "mask_kind": "classes", "class_names": "ground,lower,upper", "tile_size": "32"}
    options |= {"train_split": "train[:4]", "validation_split": "train[4:]", "test_split": "none"}
    recipe = small_recipe(tmp_path, **options)
    trainer = Trainer(recipe.task_class(recipe), Run(Path(recipe.output_dir)))
    trainer.prepare()
    trainer.train()
    metrics = trainer.evaluate(trainer.model, "validation")
    trainer.end()
    assert set(metrics) == {"dice", "iou", "pixel_error"} and trainer.model.config.id2label[2] == "upper"
    with torch.no_grad():
        files = trainer.task.figures(trainer.model.eval(), tmp_path / "figures", CONTEXT)
    assert len(files) == 4


def test_masks_without_anything_in_them_are_refused_before_training(tmp_path: Path):
    folder = write_pairs(tmp_path / "mine")
    for path in (folder / "masks").iterdir():
        Image.new("L", (33, 40)).save(path)
    task = task_of(tmp_path, dataset=str(folder), mask_kind="classes", train_split="train", validation_split="none")
    with pytest.raises(UserError, match=r"nothing but class 0 \(background\)"):
        next(task.batches({}, CONTEXT))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": "65"}, "--tile_size 65 does not fit this network: 64 and 66 fit"),
        ({"test_views": "7"}, "test_views must be 1, 4 or 8"),
        ({"class_names": "cell"}, "two different names"),
        ({"class_names": "a,b,c"}, "there are two class_names"),
        ({"mask_kind": "classes", "mask_values": "1,1"}, "mask_values must list one value"),
        ({"border_sigma": "0"}, "border_sigma must be positive"),
        ({"border_weight": "-1"}, "border_weight"),
        ({"elastic_std": "-1"}, "elastic_std"),
    ],
)
def test_nonsense_options_are_refused_in_words(tmp_path: Path, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        task_of(tmp_path, **options)


# ----------------------------------------------------------------------------------------------------------- starting


def checkpoint(folder: Path, **options) -> Path:
    torch.manual_seed(5)
    config = PaperUnetConfig(stage_channels=(5, 6, 7), padding="same", batch_norm=True, **options)
    PaperUnetForSemanticSegmentation(config).save_pretrained(folder)
    return folder


def test_a_training_starts_from_another_domains_weights(tmp_path: Path):
    start = checkpoint(tmp_path / "start")
    task = task_of(tmp_path, model_name_or_path=str(start))
    assert list(task.config.stage_channels) == [5, 6, 7], "the start's sizes win over the recipe's"
    model = task.build_model()
    expected = PaperUnetForSemanticSegmentation.from_pretrained(start).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert task.describe()["start"] == {"name": str(start), "drawn_anew": []}


def test_other_classes_and_colours_get_new_layers_and_nothing_else_does(tmp_path: Path):
    start = checkpoint(tmp_path / "start")
    options = {"mask_kind": "classes", "class_names": "a,b,c", "num_channels": "3"}
    task = task_of(tmp_path, model_name_or_path=str(start), **options)
    model = task.build_model()
    new = {"classifier.bias", "classifier.weight", "unet.contracting_path.stages.0.convolutions.0.weight"}
    assert set(task.describe()["start"]["drawn_anew"]) == new
    expected = PaperUnetForSemanticSegmentation.from_pretrained(start).state_dict()
    for name, value in model.state_dict().items():
        assert name in new or torch.equal(value, expected[name]), name
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_start_that_is_something_else_is_refused_in_words(tmp_path: Path):
    PaperVaeModel(PaperVaeConfig.from_preset("tiny")).save_pretrained(tmp_path / "vae")
    with pytest.raises(
        UserError, match="of type 'paper-vae', but PaperUnetForSemanticSegmentation needs one of type 'paper-unet'"
    ):
        task_of(tmp_path, model_name_or_path=str(tmp_path / "vae"))
    with pytest.raises(UserError, match="There is no folder"):
        task_of(tmp_path, model_name_or_path=str(tmp_path / "nowhere"))


def test_a_runs_own_recipe_needs_its_start_no_more(tmp_path: Path):
    start = checkpoint(tmp_path / "start")
    recipe = small_recipe(tmp_path, model_name_or_path=str(start))
    recipe.save(tmp_path / "recipe.yaml")
    (start / "config.json").unlink()
    assert list(load_run_recipe(tmp_path).config.stage_channels) == [5, 6, 7]


# ----------------------------------------------------------------------------------------------------------- pictures


def test_figures_are_drawn(tmp_path: Path):
    task = task_of(tmp_path)
    with torch.no_grad():
        files = task.figures(task.build_model().eval(), tmp_path / "figures", CONTEXT)
    names = {path.name for path in files.values()}
    assert names == {"predictions.png", "feature_maps.png", "weight_map.png", "augmentation.png"}
    for path in files.values():
        with Image.open(path) as picture:
            assert min(picture.size) > 200
    plain = task_of(tmp_path, weight_map="false")
    with torch.no_grad():
        files = plain.figures(plain.build_model().eval(), tmp_path / "plain", CONTEXT)
    assert "weight_map.png" not in {path.name for path in files.values()}


def test_errors_have_their_colours():
    found, true = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    picture = errors_in_colour(found, true)
    assert picture[0, 0].tolist() == [1, 1, 1] and picture[0, 3].tolist() == [0, 0, 0]
    assert picture[0, 1, 2] > 0.8 > picture[0, 1, 0] and picture[0, 2, 0] > 0.8 > picture[0, 2, 2]


def test_every_cell_has_its_colour_and_the_ground_keeps_its_own():
    cells = np.zeros((9, 9), int)
    cells[1:4, 1:8], cells[5:8, 1:8] = 1, 2
    picture = cells_in_colour(np.full((9, 9), 0.5), cells)
    assert picture.shape == (9, 9, 3) and (picture[cells == 0] == 0.5).all()
    assert len({tuple(picture[row, 4].round(4)) for row in (2, 6)}) == 2
    assert not np.allclose(picture[2, 4], picture[1, 4]), "its edge is drawn in full colour"
    assert 0 <= picture.min() and picture.max() <= 1


def test_the_telling_maps_are_those_that_vary():
    maps = torch.zeros(6, 4, 4)
    maps[1, 0], maps[4, 0] = 5.0, 3.0
    assert torch.equal(telling_maps(maps, 2), maps[[1, 4]])
    assert len(telling_maps(maps, 10)) == 6
