"""The commands as a user types them: what they print, and how they refuse."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_papers.cli import build_parser, main, parse_overrides
from hf_papers.training.recipe import load_recipe


ROOT = Path(__file__).parents[1]


def call(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return caught.value.code, *capsys.readouterr()


def test_help_needs_no_heavy_import():
    # Imports are what makes a command slow to answer; a clock in a test would depend on the machine.
    probe = (
        "import sys; sys.argv = ['hf-papers', '--help']\n"
        "from hf_papers.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'gymnasium', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in ("list", "info", "train", "evaluate", "push", "space", "export", "report"):
        assert command in result.stdout


def test_list_shows_every_paper_with_its_size_and_recipes(capsys):
    code, out, _ = call(capsys, "list")
    assert code == 0
    for word in ("vae", "815,824", "gan", "3,735,425", "dqn", "1,686,180", "mnist", "embedded", "2013"):
        assert word in out


@pytest.mark.parametrize("paper, count", [("vae", "815,824"), ("gan", "3,735,425"), ("dqn", "1,686,180")])
def test_info_shows_layers_and_counts(capsys, paper, count):
    code, out, _ = call(capsys, "info", paper)
    assert code == 0 and count in out and "FLOP" in out


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["trian", "vae"], "There is no command 'trian'. Did you mean 'train'?"),
        (["train", "dqm"], "There is no paper 'dqm'. Did you mean 'dqn'?"),
        (["train", "vae", "--lerning_rate", "1"], "Did you mean 'learning_rate'?"),
        (["train"], "Which paper?"),
        (["evaluate", "no/such/run"], "is not a run"),
        (["export", "no/such/run"], "Add --onnx"),
        (["list", "everything"], "does not know 'everything'"),
        (["space", "vea"], "Did you mean 'vae'?"),
        (["space", "push", "vae"], "hf-papers space push PAPER user/name"),
        (["train", "dqn", "--environment", "CartPoel-v1"], "CartPole"),
        (["train", "dqn", "--environment", "Pendulum-v1"], "continuous"),
        (["train", "vae", "--dataset", "embedded:digitz"], "digits"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_status_two(capsys, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *words)
    assert code == 2 and sentence in err
    assert err.startswith("hf-papers: ") and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(capsys):
    code, _, err = call(capsys, "--debug", "train", "dqm")
    assert code == 2 and "Traceback" in err and "Did you mean 'dqn'?" in err


def test_a_push_without_a_token_is_refused_before_training(capsys, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    out = tmp_path / "run"
    words = ["train", "vae", "--push_to_hub", "--hub_model_id", "me/vae", "--output_dir", str(out)]
    code, _, err = call(capsys, *words)
    assert code == 2 and "HF_TOKEN" in err and not out.exists()


def test_train_help_lists_every_option_with_the_recipes_value(capsys):
    code, out, _ = call(capsys, "train", "vae", "--recipe", "mnist", "--help")
    assert code == 0
    for word in (
        "--latent_size [20]",
        "--binarize",
        "--dataset [ylecun/mnist]",
        "--learning_rate",
        "--columns",
        "--resume",
    ):
        assert word in out


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "vae"
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "train",
                "vae",
                "--max_steps",
                "30",
                "--output_dir",
                str(folder),
                "--use_cpu",
                "--importance_samples",
                "5",
            ]
        )
    assert caught.value.code == 0
    return folder


def test_a_run_holds_everything_a_stranger_needs(short_run):
    names = {path.name for path in short_run.iterdir()}
    assert names >= {
        "recipe.yaml",
        "results.json",
        "metrics.jsonl",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "figures",
        "best",
        "checkpoints",
        "logs",
    }
    results = json.loads((short_run / "results.json").read_text())
    assert results["paper"] == "vae" and results["seed"] == 0 and results["steps"] == 30
    assert results["metrics"]["test"]["negative_elbo"] > 0
    assert results["versions"]["torch"] and results["hardware"]["cores"] and results["wall_clock_s"] >= 0
    assert results["in_expected_band"] is False  # thirty steps are not a training
    for file in results["figures"].values():
        assert (short_run / file).stat().st_size <= 200_000


def test_evaluating_a_run_again_gives_its_numbers(short_run, capsys):
    code, out, _ = call(capsys, "evaluate", str(short_run))
    results = json.loads((short_run / "results.json").read_text())
    assert code == 0
    for split, metrics in results["metrics"].items():
        for name, value in metrics.items():
            assert f"{split:<10} {name:<28} {value:.4f}" in out


def test_export_writes_a_checked_onnx_file(short_run, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx': pip install hf-papers[onnx]")
    code, out, _ = call(capsys, "export", str(short_run), "--onnx", "--output", str(tmp_path / "vae.onnx"))
    assert code == 0 and (tmp_path / "vae.onnx").stat().st_size > 1000


def test_a_second_start_on_the_same_folder_is_refused(short_run, capsys):
    before = (short_run / "model.safetensors").read_bytes()
    code, _, err = call(capsys, "train", "vae", "--output_dir", str(short_run))
    assert code == 2 and "--resume auto" in err and (short_run / "model.safetensors").read_bytes() == before


def test_the_python_of_the_readme_runs_as_it_stands(short_run, tmp_path, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    shutil.copytree(short_run, tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "torch.Size([16, 1, 8, 8])" in capsys.readouterr().out


def test_the_commands_of_the_readme_are_understood():
    readme = (ROOT / "README.md").read_text()
    lines = [line.split("#")[0].strip() for line in readme.splitlines() if line.startswith("hf-papers train")]
    assert len(lines) > 4
    for line in lines:
        words = shlex.split(line)[2:]
        options, rest = build_parser().parse_known_args(["train", *words])
        load_recipe(options.paper, options.recipe, parse_overrides(rest))
