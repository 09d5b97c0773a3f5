"""The ways to start a training: those that work do what they say, and what is uneven or half started ends in a sentence."""

import sys

import pytest

from tests.training.launching import SHORT, hf_papers, run


pytestmark = pytest.mark.first


def test_accelerate_launch_on_the_cpu_does_not_silently_run_one_process(tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    result = run([*launcher, "scripts/train.py", "vae", "--output_dir", str(tmp_path / "run")])
    assert "asked for several processes but started this one alone" in result.stderr
    assert "--num_processes 2 --use_cpu" in result.stderr
    assert result.returncode != 0 and not (tmp_path / "run").exists()


def test_accelerate_launch_runs_the_script(tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    out = tmp_path / "run"
    options = ["--output_dir", str(out), "--report_to", "none", *SHORT["vae"]]
    result = run([*launcher, "scripts/train.py", "vae", *options])
    assert result.returncode == 0, result.stderr[-3000:]
    assert (out / "model.safetensors").is_file()


def test_shards_of_uneven_size_end_in_a_sentence(tmp_path):
    from datasets import Dataset, Features, Image

    images = [{"path": None, "bytes": image} for image in _pngs(72)]
    folder = tmp_path / "data"
    folder.mkdir()
    features = Features({"image": Image()})
    Dataset.from_dict({"image": images[:64]}, features=features).to_parquet(folder / "train-00000.parquet")
    Dataset.from_dict({"image": images[64:]}, features=features).to_parquet(folder / "train-00001.parquet")
    splits = ["--train_split", "train", "--validation_split", "train[:8]", "--test_split", "train[:8]"]
    size = ["--max_steps", "200", "--per_device_train_batch_size", "4", "--importance_samples", "0"]
    options = ["--num_processes", "2", "--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path / "run")]
    result = hf_papers("train", "vae", "--dataset", str(folder), *splits, *size, *options)
    assert result.returncode != 0
    assert "hold different numbers of rows" in result.stderr, result.stderr[-3000:]


@pytest.mark.slow  # a launch like the one above, for a refusal that tests/data/test_stream.py has without processes
def test_fewer_rows_than_processes_end_in_a_sentence(tmp_path):
    from datasets import Dataset, Features, Image

    folder = tmp_path / "data"
    folder.mkdir()
    images = [{"path": None, "bytes": image} for image in _pngs(3)]
    Dataset.from_dict({"image": images}, features=Features({"image": Image()})).to_parquet(folder / "train.parquet")
    splits = ["--train_split", "train", "--validation_split", "train", "--test_split", "train"]
    options = ["--num_processes", "2", "--use_cpu", "--report_to", "none", "--output_dir", str(tmp_path / "run")]
    result = hf_papers("train", "vae", "--dataset", str(folder), *splits, "--max_steps", "5", *options)
    assert result.returncode != 0
    assert "hf-papers:" in result.stderr and "rows" in result.stderr, result.stderr[-3000:]


def _pngs(count):
    import io

    import numpy as np
    from PIL import Image as PilImage

    generator = np.random.default_rng(0)
    for _ in range(count):
        file = io.BytesIO()
        PilImage.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(file, "PNG")
        yield file.getvalue()
