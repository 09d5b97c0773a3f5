"""A training whose server goes away in the middle: one sentence, an intact checkpoint, and a resumed run that ends equal."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PilImage
from safetensors.torch import load_file

from hf_papers.data.rows import RETRIES
from hf_papers.errors import UserError
from hf_papers.training.finish import run_recipe
from hf_papers.training.recipe import load_recipe


pytest_plugins = ["tests.hub.fixtures"]


@pytest.fixture
def pictures(hub, tmp_path):
    """96 small pictures in two shards, published as user/pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for shard in range(2):
        rows = []
        for _ in range(48):
            file = io.BytesIO()
            PilImage.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(file, "PNG")
            rows.append({"path": None, "bytes": file.getvalue()})
        dataset = Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))
        dataset.to_parquet(folder / f"train-{shard:05d}-of-00002.parquet")
    hub.add_repo("dataset", "user/pictures", {f"data/{path.name}": path for path in sorted(folder.iterdir())})
    return "user/pictures"


def recipe(dataset, out, **more):
    overrides = {
        "dataset": dataset,
        "train_split": "train",
        "validation_split": "train[:16]",
        "test_split": "train[:16]",
        "per_device_train_batch_size": "8",
        "max_steps": "60",
        "save_steps": "5",
        "eval_steps": "60",
        "memory_budget_gb": "0",  # every epoch is read from the server again
        "shuffle_buffer_size": "16",
        "importance_samples": "0",
        "report_to": "none",
        "use_cpu": "true",
        "progress": "false",
        "output_dir": str(out),
    }
    return load_recipe("vae", "embedded", overrides | more)


def final_weights(out):
    return load_file(out / "checkpoints" / "checkpoint-00000060" / "model.safetensors")


@pytest.fixture
def impatient(monkeypatch, without_waiting):
    """Giving up for good takes no time."""
    monkeypatch.setattr(RETRIES, "seconds", 0.05)
    monkeypatch.setattr(RETRIES, "first_wait", 0.01)


def test_a_server_that_goes_away_loses_nothing(hub, pictures, tmp_path, impatient):
    run_recipe(recipe(pictures, tmp_path / "whole"))
    hub.fail(r"train-.*\.parquet", times=10_000, skip=6, status=503)
    with pytest.raises(UserError, match=r"user/pictures.*--resume auto"):
        run_recipe(recipe(pictures, tmp_path / "run"))
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints and not any(name.endswith(".partial") for name in checkpoints)
    hub.heal()
    run_recipe(recipe(pictures, tmp_path / "run", resume="auto"))
    whole, resumed = final_weights(tmp_path / "whole"), final_weights(tmp_path / "run")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
