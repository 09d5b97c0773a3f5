"""From a run to the Hub and back, through the real clients and a local Hub."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, SpaceCard, parse_eval_result_entries, snapshot_download
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel

import hf_papers
from hf_papers.errors import UserError
from hf_papers.hub.bundle import code_files, sibling_imports, write_bundle
from hf_papers.hub.cards import eval_results_yaml, render_card, shipped_recipe, without_package
from hf_papers.hub.checkpoints import PICKLES, load_strict
from hf_papers.hub.publish import check_can_push, push_run, stage_run
from hf_papers.hub.spaces import PACKAGE, requirements, run_locally, shorten, space_card, stage_space
from hf_papers.registry import Paper, find_paper, papers
from tests.hub.metadata import front_matter, metadata_errors
from tests.hub.server import HubServer


pytest_plugins = ["tests.hub.fixtures"]

RECIPE = {
    "paper": "vae",
    "name": "mnist",
    "description": "The paper's network",
    "estimate": "15 minutes on one core",
    "reference": {"negative_elbo": {"value": 99.5, "source": "figure 2"}},
    "model": {"latent_size": 4},
    "task": {"free_bits": 0.0},
    "data": {"dataset": "ylecun/mnist", "dataset_config": "mnist", "test_split": "test", "revision": "a" * 40},
    "training": {"learning_rate": 0.001, "max_steps": 1000, "seed": 7, "output_dir": "somewhere"},
    "expected": {"negative_elbo": {"max": 96}},
}
RESULTS = {
    "paper": "vae",
    "recipe": "mnist",
    "seed": 7,
    "steps": 1000,
    "parameters": 2836,
    "metrics": {"validation": {"negative_elbo": 94.25}, "test": {"negative_elbo": 95.5, "nll": 88.75}},
    "wall_clock_s": 513.0,
    "hardware": {"device": "Some CPU", "type": "cpu", "processes": 1, "threads_per_process": 2},
    "versions": {"torch": "9.9.9"},
    "commit": "c0ffee",
    "command": "hf-papers train vae --recipe mnist",
    "date": "2026-03-01",
    "figures": {"Samples": "figures/samples.png"},
}
OVER_SEEDS = {
    **{key: RESULTS[key] for key in ("paper", "recipe", "wall_clock_s", "hardware", "versions", "commit", "command")},
    "seeds": [1, 2, 3],
    "runs": [],
    "metrics": {"test": {"negative_elbo": {"mean": 95.5, "std": 0.5, "values": [95.0, 95.5, 96.0]}}},
}


@pytest.fixture(scope="module")
def vae() -> Paper:
    hf_papers.register_all()
    return find_paper("vae")


def make_model(paper: Paper) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return paper.model_class(paper.config_class.from_preset("tiny")).eval()


@pytest.fixture
def run(tmp_path: Path, vae: Paper) -> Path:
    """A finished run, as the trainer writes one, with things in it that must stay at home."""
    folder = tmp_path / "run"
    make_model(vae).save_pretrained(folder)
    vae.image_processor_class(size={"height": 8, "width": 8}).save_pretrained(folder)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "figures").mkdir()
    Image.new("L", (8, 8)).save(folder / "figures" / "samples.png")
    (folder / "README.md").write_text("an older card")
    for stays in (
        "optimizer.bin",
        "checkpoints/checkpoint-00000001/state.pkl",
        "logs/events",
        "metrics.jsonl",
        "figures/notes.txt",
    ):
        (folder / stays).parent.mkdir(parents=True, exist_ok=True)
        (folder / stays).write_bytes(b"private")
    return folder


def same_weights(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def sentence(call: Callable[[], Any]) -> str:
    """The one sentence or two with which `call` refuses."""
    with pytest.raises(UserError) as refusal:
        call()
    words = str(refusal.value)
    assert "Traceback" not in words and "\n" not in words and len(words) < 600, words
    return words


# --------------------------------------------------------------------------------------------------------- may I push?


@pytest.mark.parametrize(
    "repo_id", ["vae", "", "a/b/c", "me/", "/vae", "me/-vae", "me/va e", "me/va--e", "me/v..e", "me/vae.", "é/x"]
)
def test_a_malformed_id_is_refused_before_anything_is_asked(hub: HubServer, logged_in: str, repo_id: str) -> None:
    assert "is not a repository id" in sentence(lambda: check_can_push(repo_id))
    assert hub.seen() == []


def test_without_a_token_the_sentence_says_how_to_get_one(hub: HubServer) -> None:
    words = sentence(lambda: check_can_push("tester/vae"))
    assert "hf auth login" in words and "HF_TOKEN" in words and hub.seen() == []


@pytest.mark.parametrize(
    ("token", "repo_id", "expected"),
    [
        ("hf_nobody", "tester/vae", "the token was refused"),
        ("hf_reader", "reader/vae", "may only read"),
        ("hf_tester", "somebody/vae", "tester/vae or tester-lab/vae"),
    ],
)
def test_a_token_that_will_not_do(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, token: str, repo_id: str, expected: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    assert expected in sentence(lambda: check_can_push(repo_id))


def test_a_good_token_may(hub: HubServer, logged_in: str) -> None:
    assert check_can_push("tester/vae") == "tester" == check_can_push("tester-lab/vae-2.0_b")


def test_no_hub_no_offline(hub: HubServer, logged_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in sentence(lambda: check_can_push("tester/vae"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in sentence(lambda: check_can_push("tester/vae"))


# ---------------------------------------------------------------------------------------------------------- there and back


def test_push_and_load_without_trust(hub: HubServer, logged_in: str, run: Path, vae: Paper) -> None:
    url = push_run(run, "tester/vae-tiny")
    assert url == f"{hub.url}/tester/vae-tiny"
    repo = hub.repos["model", "tester/vae-tiny"]
    assert set(repo.files) == {
        ".gitattributes",
        "configuration_vae.py",
        "modeling_vae.py",
        ".eval_results/mnist.yaml",
        "README.md",
        "config.json",
        "figures/samples.png",
        "image_processing_vae.py",
        "model.safetensors",
        "preprocessor_config.json",
        "recipe.yaml",
        "results.json",
    }
    assert not any(Path(name).suffix in PICKLES for name in repo.files)
    assert len(list(repo.branches["main"].history())) == 2, "the initial commit and ours, all in one"
    model = AutoModel.from_pretrained("tester/vae-tiny")
    assert type(model) is vae.model_class and same_weights(model, make_model(vae)) and not model.training
    assert type(AutoConfig.from_pretrained("tester/vae-tiny")) is vae.config_class
    processor = AutoImageProcessor.from_pretrained("tester/vae-tiny")
    assert type(processor) is vae.image_processor_class and processor.size["height"] == 8
    assert same_weights(load_strict(vae, "tester/vae-tiny"), model)


def test_what_the_hub_shows_of_it(hub: HubServer, logged_in: str, run: Path) -> None:
    push_run(run, "tester/vae-tiny")
    info = HfApi().model_info("tester/vae-tiny")
    assert (info.library_name, info.pipeline_tag) == ("transformers", "unconditional-image-generation")
    assert {"arxiv:1312.6114", "license:mit", "dataset:ylecun/mnist", "hf_papers"} <= set(info.tags)
    card = ModelCard.load("tester/vae-tiny")
    card.validate()
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == RESULTS["metrics"]["test"]
    entries = parse_eval_result_entries(
        yaml.safe_load(hub.repos["model", "tester/vae-tiny"].files[".eval_results/mnist.yaml"])
    )
    assert [(e.dataset_id, e.task_id, e.value, e.dataset_revision) for e in entries] == [
        ("ylecun/mnist", "mnist", 95.5, "a" * 40)
    ]


def test_pushed_again_nothing_changes_nothing_is_sent(hub: HubServer, logged_in: str, run: Path) -> None:
    push_run(run, "tester/vae-tiny")
    first = hub.repos["model", "tester/vae-tiny"].branches["main"].sha
    hub.forget_requests()
    push_run(run, "tester/vae-tiny")
    assert hub.repos["model", "tester/vae-tiny"].branches["main"].sha == first
    assert not hub.seen("/commit/") and not hub.seen("^PUT")


def test_private_and_on_a_branch(hub: HubServer, logged_in: str, run: Path, vae: Paper) -> None:
    push_run(run, "tester-lab/vae", private=True, revision="try/one", commit_message="my words")
    repo = hub.repos["model", "tester-lab/vae"]
    assert repo.private and set(repo.files) == {".gitattributes"}
    assert repo.branches["try/one"].title == "my words"
    assert same_weights(load_strict(vae, "tester-lab/vae", revision="try/one"), make_model(vae))
    assert "no config.json" in sentence(lambda: load_strict(vae, "tester-lab/vae"))


REMOTE = """
import sys
from PIL import Image
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel
torch.set_num_threads(1)
image = Image.new("L", (20, 20), 100)
image.save("picture.png")
try:
    AutoModel.from_pretrained("tester/vae-tiny", trust_remote_code=False)
    raise SystemExit("loaded without trust")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
source = "tester/vae-tiny"
for turn in range(3):
    model = AutoModel.from_pretrained(source, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True)
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    assert pixels.shape == (1, 1, 8, 8), pixels.shape
    print(sum(value.double().sum().item() for value in model.state_dict().values()))
    source = sys.argv[0].replace("stranger.py", f"saved-{turn}")
    model.save_pretrained(source)
    processor.save_pretrained(source)
SNIPPET
print("done")
"""


def test_loads_as_remote_code_where_we_are_not_installed(
    hub: HubServer, logged_in: str, run: Path, vae: Paper, stranger: Callable[..., str]
) -> None:
    """Loads, saves, loads, saves, loads; and the card's own snippet runs as it stands."""
    push_run(run, "tester/vae-tiny")
    card = hub.repos["model", "tester/vae-tiny"].files["README.md"].decode()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    assert 'from_pretrained("tester/vae-tiny", trust_remote_code=True)' in snippet
    printed = stranger(REMOTE.replace("SNIPPET", snippet), hub.env()).split()
    expected = sum(value.double().sum().item() for value in make_model(vae).state_dict().values())
    assert printed[-1] == "done" and [float(value) for value in printed[:3]] == [expected] * 3


READERS = [
    ("transformer", "embedded", {"num_heads": 2, "d_model": 8, "d_ff": 8}),
    ("bert", "nltk-english", {"hidden_size": 24, "num_attention_heads": 2}),
]


@pytest.fixture(params=READERS, ids=["transformer", "bert"])
def run_on_text(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A finished run of a model that reads text, with the vocabulary that it was trained on."""
    key, recipe, sizes = request.param
    paper = find_paper(key)
    texts = ["thursday, may 3rd, 1979 the film was good. the film was bad."] * 20
    tokenizer = paper.resolve(paper.tokenizer_trainer)(texts, 50)
    folder = tmp_path / "run"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        paper.model_class(paper.config_class(vocab_size=50, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    results = {"paper": key, "recipe": recipe, "seed": 0, "metrics": {}, "wall_clock_s": 1.0}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_a_model_that_reads_text_is_published_with_its_vocabulary(
    hub: HubServer, logged_in: str, run_on_text: Path, stranger: Callable[..., str]
) -> None:
    push_run(run_on_text, "tester/reader")
    published = hub.repos["model", "tester/reader"].files
    kept = (run_on_text / "tokenizer.json").read_bytes()
    assert json.loads(published["tokenizer.json"]) == json.loads(kept)
    snippet = re.search(r"```python\n(.*?)```", published["README.md"].decode(), re.DOTALL).group(1)
    assert '"tester/reader", trust_remote_code=True)' in snippet
    assert stranger(snippet + "\nprint('done')", hub.env()).split()[-1] == "done"
    (run_on_text / "tokenizer_config.json").unlink()
    assert "tokenizer_config.json" in sentence(lambda: push_run(run_on_text, "tester/reader"))


# ------------------------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    "where",
    [
        "POST /api/repos/create",
        "GET /api/models",
        "POST /api/validate-yaml",
        "/preupload/",
        "/objects/batch",
        "PUT /lfs",
        "/commit/",
    ],
)
def test_a_server_that_is_busy_for_a_while(
    hub: HubServer, logged_in: str, run: Path, without_waiting: list[float], where: str
) -> None:
    fault = hub.fail(where, times=2, status=503)
    push_run(run, "tester/vae")
    repo = hub.repos["model", "tester/vae"]
    assert fault.struck == 2 and len(list(repo.branches["main"].history())) == 2 and "model.safetensors" in repo.files


BROKEN = {"503": {"status": 503}, "cut": {"drop_after": 0}, "reset": {"drop_after": 0, "reset": True}}


@pytest.mark.parametrize(
    ("where", "what"),
    [("POST /api/repos/create", what) for what in BROKEN]
    + [("/preupload/", what) for what in BROKEN]
    + [("PUT /lfs", "503"), ("/commit/", "503")],
)
def test_a_server_that_stays_broken_gets_nothing_by_halves(
    hub: HubServer, logged_in: str, run: Path, without_waiting: list[float], where: str, what: str
) -> None:
    hub.fail(where, times=None, **BROKEN[what])
    words = sentence(lambda: push_run(run, "tester/vae"))
    assert words.startswith("Publishing failed") and "again later" in words
    repo = hub.repos.get(("model", "tester/vae"))
    assert repo is None or set(repo.files) == {".gitattributes"}


@pytest.mark.parametrize("where", ["PUT /lfs", "/lfs-verify", "/commit/"])
@pytest.mark.parametrize("what", ["cut", "reset"])
def test_what_was_done_is_not_done_twice_when_the_answer_is_lost(
    hub: HubServer, logged_in: str, run: Path, without_waiting: list[float], where: str, what: str
) -> None:
    hub.fail(where, times=None, **BROKEN[what])
    push_run(run, "tester/vae")
    repo = hub.repos["model", "tester/vae"]
    assert len(list(repo.branches["main"].history())) == 2 and "model.safetensors" in repo.files


def test_a_damaged_upload_is_told(hub: HubServer, logged_in: str, run: Path, without_waiting: list[float]) -> None:
    hub.fail("PUT /lfs", times=None, corrupt=True)
    assert "damaged on the way" in sentence(lambda: push_run(run, "tester/vae"))
    assert set(hub.repos["model", "tester/vae"].files) == {".gitattributes"}


def test_something_that_is_no_hub(hub: HubServer, logged_in: str, without_waiting: list[float]) -> None:
    hub.fail("whoami", status=404)
    assert "answered 404" in sentence(lambda: check_can_push("tester/vae"))
    hub.fail("whoami", truncate=5)
    assert "does not answer as a Hub does" in sentence(lambda: check_can_push("tester/vae"))


def test_a_hub_without_xet_storage(hub: HubServer, logged_in: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    assert "HF_HUB_DISABLE_XET=1" in sentence(lambda: push_run(run, "tester/vae"))
    assert set(hub.repos["model", "tester/vae"].files) == {".gitattributes"}


def test_what_cannot_be_published(hub: HubServer, logged_in: str, run: Path, tmp_path: Path) -> None:
    assert "There is no run" in sentence(lambda: push_run(tmp_path / "none", "tester/vae"))
    (run / "preprocessor_config.json").rename(tmp_path / "kept")
    assert "preprocessor_config.json" in sentence(lambda: push_run(run, "tester/vae"))
    (tmp_path / "kept").rename(run / "preprocessor_config.json")
    weights = load_file(run / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] * float("nan")}, run / "model.safetensors", metadata={"format": "pt"})
    assert "NaN" in sentence(lambda: push_run(run, "tester/vae"))
    (run / "results.json").write_text("{")
    assert "damaged" in sentence(lambda: push_run(run, "tester/vae"))
    (run / "results.json").unlink()
    assert "not a finished run" in sentence(lambda: push_run(run, "tester/vae"))
    assert ("model", "tester/vae") not in hub.repos


# ---------------------------------------------------------------------------------------------- loading from the Hub, told


def test_what_load_strict_says_of_the_hub(
    hub: HubServer,
    logged_in: str,
    run: Path,
    vae: Paper,
    without_waiting: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "no repository 'tester/none'" in sentence(lambda: load_strict(vae, "tester/none"))
    assert "no folder ./none" in sentence(lambda: load_strict(vae, "./none"))
    assert "is a file" in sentence(lambda: load_strict(vae, run / "config.json"))
    push_run(run, "tester/vae")
    assert "no revision 'v9'" in sentence(lambda: load_strict(vae, "tester/vae", revision="v9"))
    hub.fail("GET /api/models/tester/vae", times=None, status=500)
    assert "server error 500" in sentence(lambda: load_strict(vae, "tester/vae"))
    hub.heal()
    hub.fail("GET .*/config.json", status=403)
    assert "may not" in sentence(lambda: load_strict(vae, "tester/vae"))
    hub.heal()
    load_strict(vae, "tester/vae")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    load_strict(vae, "tester/vae")  # it is in the cache


def test_a_gan_is_no_vae(tmp_path: Path, vae: Paper) -> None:
    gan = find_paper("gan")
    make_model(gan).save_pretrained(tmp_path)
    words = sentence(lambda: load_strict(vae, tmp_path))
    assert "'paper-gan'" in words and "'paper-vae'" in words
    assert type(load_strict(gan, tmp_path)) is gan.model_class


def test_sharded_and_half_downloaded(tmp_path: Path, vae: Paper) -> None:
    model = make_model(vae)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1 and same_weights(load_strict(vae, tmp_path), model)
    shards[0].unlink()
    assert shards[0].name in sentence(lambda: load_strict(vae, tmp_path))


# ------------------------------------------------------------------------------------------------------------------ bundles


@pytest.mark.parametrize("key", sorted(papers()))
def test_the_code_of_every_paper_can_travel(key: str) -> None:
    paper = papers()[key]
    classes = [paper.config_class, *paper.model_classes.values()]
    classes += [paper.image_processor_class] if paper.image_processor_class else []
    for cls in classes:
        assert all(path.parent == paper.folder for path in code_files(cls))


@pytest.mark.parametrize(
    "statement",
    [
        "import hf_papers",
        "from hf_papers.errors import UserError",
        "from . import other",
        "from ..x import y",
        "from .a.b import c",
        "import scipy",
        "def f():\n    from sklearn import svm",
        "from .missing import x",
    ],
)
def test_code_that_cannot_travel_is_refused(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "modeling_x.py"
    path.write_text(f"import math\nimport torch\nfrom transformers.utils import ModelOutput\n{statement}\n")
    with pytest.raises(UserError, match="modeling_x.py"):
        sibling_imports(path)


def test_writing_a_bundle_changes_neither_model_nor_class(tmp_path: Path, vae: Paper) -> None:
    model = make_model(vae)
    model.save_pretrained(tmp_path / "plain")  # transformers itself notes architecture and dtype when it saves
    before = model.config.to_dict()
    folder = write_bundle(model, None, tmp_path / "bundle")
    assert (
        model.config.to_dict() == before and type(model)._auto_class is None and type(model.config)._auto_class is None
    )
    model.save_pretrained(tmp_path / "plain")
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"config.json", "model.safetensors"}
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map == {"AutoConfig": "configuration_vae.PaperVaeConfig", "AutoModel": "modeling_vae.PaperVaeModel"}


def test_a_bundle_of_a_model_loaded_from_a_bundle_is_whole_again(tmp_path: Path, vae: Paper) -> None:
    first = write_bundle(make_model(vae), vae.image_processor_class(), tmp_path / "first")
    model = AutoModel.from_pretrained(first)
    second = write_bundle(model, AutoImageProcessor.from_pretrained(first), tmp_path / "second")
    for path in first.iterdir():
        assert (second / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_model_of_nobody_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    tiny = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=10)
    assert "belongs to no paper" in sentence(lambda: write_bundle(BertModel(tiny), None, tmp_path))


# -------------------------------------------------------------------------------------------------------------------- cards


@pytest.mark.parametrize("key", sorted(papers()))
@pytest.mark.parametrize("results", [None, {}, RESULTS, OVER_SEEDS], ids=["nothing", "empty", "one run", "over seeds"])
def test_every_card_is_valid(key: str, results: dict[str, Any] | None) -> None:
    paper = papers()[key]
    config = paper.config_class.from_preset("tiny").to_dict()
    for recipe in (None, RECIPE if results else None, {"name": "x", "data": {"dataset": "embedded:digits"}}):
        text = render_card(paper, config, recipe, results, repo_id="me/it")
        data, errors = front_matter(text)
        assert errors == [] == metadata_errors(data, "model")
        assert data["library_name"] == "transformers" and data["license"] and {*paper.hub_tags} <= {*data["tags"]}
        assert ModelCard(text).data.to_dict() == data
        assert ("model-index" in data) == bool(results)
        assert ("not run yet" in text) == (not results) or recipe is None


def test_a_card_says_what_the_run_said(vae: Paper) -> None:
    text = render_card(vae, vae.config_class.from_preset("tiny").to_dict(), RECIPE, RESULTS, repo_id="me/vae")
    said = [
        "| negative_elbo | 99.5 | 95.5 | 94.25 | ≤ 96 |",
        "| nll | – | 88.75 | – | – |",
        "one run, seed 7",
        "2,836 parameters",
        "Some CPU (1 process, 2 threads each)",
        "8 min 33 s",
        "`hf-papers train vae --recipe mnist`",
        "`c0ffee`",
        "torch 9.9.9",
        "figure 2",
        "15 minutes on one core",
        "![Samples](figures/samples.png)",
        "| learning_rate | `0.001` |",
        "`latent_size` is 4; the paper's is 20.",
        'from_pretrained("me/vae", trust_remote_code=True)',
        "import hf_papers",
        "@article{kingma2013vae",
        "Diederik P. Kingma and Max Welling",
        vae.summary,
    ]
    assert [part for part in said if part not in text] == []
    assert "somewhere" not in text and "not run yet" not in text


def test_a_card_over_seeds(vae: Paper) -> None:
    text = render_card(vae, None, RECIPE, OVER_SEEDS)
    assert "| negative_elbo | 99.5 | 95.50 ± 0.50 | – | ≤ 96 |" in text
    assert "mean ± standard deviation over seeds 1, 2, 3" in text
    assert ModelCard(text).data.eval_results[0].metric_name == "test negative_elbo, mean of 3 seeds"
    assert "± 0.5 over 3 seeds" in eval_results_yaml(RECIPE, OVER_SEEDS)


def test_a_card_of_a_player_names_its_environment() -> None:
    recipe = {"name": "cartpole", "model": {"environment": "CartPole-v1"}, "data": {"dataset": None}}
    text = render_card(find_paper("dqn"), None, recipe, {"seed": 1, "metrics": {"test": {"mean_return": 500.0}}})
    (result,) = ModelCard(text).data.eval_results
    assert (result.task_type, result.dataset_type, result.metric_value) == (
        "reinforcement-learning",
        "CartPole-v1",
        500.0,
    )
    assert "trained in the environment CartPole-v1" in text


def test_what_has_no_place_on_a_leaderboard() -> None:
    assert eval_results_yaml({"data": {"dataset": "embedded:digits"}}, RESULTS) is None
    assert eval_results_yaml(RECIPE, {}) is None
    assert eval_results_yaml(RECIPE, {"metrics": {"test": {"nll": float("nan")}}}) is None


def test_numbers_that_are_not_finite_do_not_reach_the_metadata(vae: Paper) -> None:
    broken = {**RESULTS, "metrics": {"test": {"negative_elbo": float("nan"), "nll": 1.5}}}
    data, _ = front_matter(render_card(vae, None, RECIPE, broken))
    assert data["metrics"] == ["nll"]
    assert "| negative_elbo | 99.5 | not run yet | not run yet | ≤ 96 |" in render_card(vae, None, RECIPE, broken)


def test_the_snippet_of_the_paper_s_readme_is_used_with_the_right_id(
    vae: Paper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (
        "# VAE\n\n## Use it\n\n```python\nimport hf_papers\nmodel = AutoModel.from_pretrained('someone/vae')\n```\n\n"
        "## Differences from the paper\n\nWe use Adam.\n\n## Limits\n\nIt blurs.\n"
    )
    (tmp_path / "README.md").write_text(readme)
    monkeypatch.setattr(Paper, "folder", property(lambda self: tmp_path))
    text = render_card(vae, None, RECIPE, RESULTS, repo_id="me/vae")
    assert 'model = AutoModel.from_pretrained("me/vae", trust_remote_code=True)' in text and "someone" not in text
    assert "We use Adam." in text and "It blurs." in text


def test_differences_count_options_that_the_paper_s_recipe_leaves_at_their_defaults() -> None:
    """Masking 30 % instead of 15 %, or no weight map, is what a reader has to know of such a checkpoint."""
    shown = [("bert", "masking_probability", 0.3, 0.15), ("unet", "weight_map", False, True)]
    for key, option, ours, theirs in shown:
        paper = papers()[key]
        assert option not in shipped_recipe(paper, "paper")["task"]
        for value, expected in ((ours, True), (theirs, False)):
            card = render_card(paper, None, {"name": "mine", "task": {option: value}}, RESULTS)
            assert (f"`{option}` is {ours}; the paper's recipe has {theirs}." in card) == expected


@pytest.mark.parametrize(
    ("snippet", "expected"),
    [
        ("import hf_papers\nAutoModel.from_pretrained('x')", "AutoModel.from_pretrained('x')"),
        ("import gymnasium, hf_papers\nx = 1", "import gymnasium\nx = 1"),
        (
            "from hf_papers import PaperVaeModel, PaperVaeImageProcessor\nm = PaperVaeModel.from_pretrained('x')",
            "from transformers import AutoImageProcessor, AutoModel\nm = AutoModel.from_pretrained('x')",
        ),
        ("from hf_papers import papers\npapers()", None),
        ("from hf_papers.data import x\nx()", None),
        ("", None),
    ],
)
def test_a_snippet_without_the_package(vae: Paper, snippet: str, expected: str | None) -> None:
    assert without_package(vae, snippet) == expected


def test_a_card_shows_how_its_own_kind_of_checkpoint_is_used() -> None:
    pre_trained = render_card(papers()["bert"], repo_id="me/it")
    classifier = render_card(papers()["bert"], recipe={"task_type": "glue"}, repo_id="me/it")
    assert 'pipeline("fill-mask", "me/it", trust_remote_code=True)' in pre_trained
    assert 'pipeline("fill-mask", "me/it")' in pre_trained and 'text-classification"' not in pre_trained
    assert 'pipeline("text-classification", "me/it", trust_remote_code=True)' in classifier
    assert "runs/" not in "".join(re.findall(r"```python\n(.*?)```", pre_trained + classifier, re.DOTALL))


def test_a_card_gives_the_model_a_text_of_its_own_data() -> None:
    paper = papers()["transformer"]
    for name, said in (("multi30k-de-en", "Zwei Hunde"), ("multi30k-en-de", "Two dogs"), ("embedded", "Thursday")):
        shown = shipped_recipe(paper, name)
        assert shown["example"].startswith(said)
        for recipe in (shown, {key: value for key, value in shown.items() if key != "example"}):  # an older run's
            card = render_card(paper, None, recipe, repo_id="me/it")
            assert front_matter(card)[0]["widget"] == [{"text": shown["example"]}]
            assert card.count(f'text = "{shown["example"]}"') == 2 and "model.generate(" in card
    quoted = {"name": "mine", "example": 'She said: "Grüße \\1"'}
    code = re.search(r"^text = .*$", render_card(paper, None, quoted), re.MULTILINE).group()
    assert ast.literal_eval(code.removeprefix("text = ")) == quoted["example"] and "Grüße" in code
    assert "widget" not in front_matter(render_card(papers()["vae"], None, RECIPE, RESULTS))[0]


@pytest.mark.parametrize("key", sorted(papers()))
def test_tags_name_no_data_that_a_run_may_not_have_seen(key: str) -> None:
    elsewhere = {"name": "mine", "data": {"dataset": "me/faces"}}
    data, _ = front_matter(render_card(papers()[key], None, elsewhere, RESULTS))
    assert data["datasets"] == ["me/faces"]
    assert not {"mnist", "cifar10", "multi30k", "cartpole"} & set(data["tags"])


def test_a_card_s_snippet_fits_its_kind_of_checkpoint() -> None:
    classifier = render_card(papers()["transformer"], None, shipped_recipe(papers()["transformer"], "sst2"))
    assert 'pipeline("text-classification", "path/to/this/folder", trust_remote_code=True)' in classifier
    assert 'pipeline("image-segmentation", "path/to/this/folder", trust_remote_code=True)' in render_card(
        papers()["unet"]
    )


@pytest.mark.parametrize("key", sorted(papers()))
def test_every_card_s_snippets_are_python(key: str) -> None:
    text = render_card(papers()[key], repo_id="me/it")
    trusting, importing = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for snippet in (trusting, importing):
        compile(snippet, "card", "exec")
        assert re.search(r"(from_pretrained\(|pipeline\(\"[a-z-]+\", )\"me/it\"", snippet)
        assert len([line for line in snippet.splitlines() if line]) <= 7
    assert "hf_papers" not in trusting and "trust_remote_code=True" in trusting
    assert importing.startswith("import hf_papers\n") and "trust_remote_code" not in importing
    assert "dummy_inputs" not in importing and "picture.png" not in importing  # what stands for a README without a use


@pytest.mark.parametrize("key", sorted(papers()))
def test_a_shipped_recipe_is_found_by_name(key: str) -> None:
    paper = papers()[key]
    assert all(shipped_recipe(paper, name)["name"] == name for name in paper.recipes)
    assert shipped_recipe(paper, "no such recipe") == {} == shipped_recipe(paper, None)


def test_staging_leaves_the_run_as_it_was(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    stage_run(run, tmp_path / "staged", "me/vae")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# ------------------------------------------------------------------------------------------------------------------- Spaces


@pytest.fixture
def vae_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one small Space, `spaces/vae`."""
    folder = tmp_path / "spaces" / "vae"
    folder.mkdir(parents=True)
    (folder / "app.py").write_text("import os, sys\nprint(os.environ.get('MODEL_ID'))\nsys.exit(3)\n")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "app.pyc").write_bytes(b"x")
    monkeypatch.setattr("hf_papers.hub.spaces.SPACES", tmp_path / "spaces")
    return folder


def test_a_space_is_published_whole(hub: HubServer, logged_in: str, run: Path, vae_space: Path, vae: Paper) -> None:
    from hf_papers.hub.spaces import deploy

    url = deploy("vae", "tester/vae-space", run)
    assert url == f"{hub.url}/spaces/tester/vae-space"
    repo = hub.repos["space", "tester/vae-space"]
    assert repo.settings["sdk"] == "gradio" and len(list(repo.branches["main"].history())) == 2
    source = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")}
    assert source <= set(repo.files)
    kept = {
        "checkpoint/config.json",
        "checkpoint/model.safetensors",
        "checkpoint/preprocessor_config.json",
        "checkpoint/results.json",
    }
    assert set(repo.files) - source >= {"README.md", "app.py", "requirements.txt", *kept}
    assert not any("__pycache__" in name or Path(name).suffix in PICKLES for name in repo.files)
    data = SpaceCard(repo.files["README.md"].decode()).data
    assert (data.sdk, data.app_file, data.license) == ("gradio", "app.py", "mit") and data.sdk_version
    assert metadata_errors(data.to_dict(), "space") == []
    assert (
        repo.files["requirements.txt"].decode().startswith("--extra-index-url")
        and b"\ntorch==" in repo.files["requirements.txt"]
    )


def test_a_published_space_finds_its_package_and_checkpoint(
    run: Path, vae_space: Path, tmp_path: Path, stranger_packages: Path
) -> None:
    staged = stage_space("vae", tmp_path / "staged", run)
    code = (
        f"import sys; sys.path[:0] = [{str(staged)!r}, {str(stranger_packages)!r}]\n"
        "import hf_papers; from hf_papers.hub.checkpoints import load_strict\n"
        f"load_strict(hf_papers.find_paper('vae'), {str(staged / 'checkpoint')!r}); print(hf_papers.__file__)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(staged / "hf_papers" / "__init__.py")


def test_a_space_with_a_checkpoint_from_the_hub(
    hub: HubServer, logged_in: str, run: Path, vae_space: Path, vae: Paper, tmp_path: Path
) -> None:
    push_run(run, "tester/vae-tiny")
    (vae_space / "README.md").write_text("---\ntitle: My own\nemoji: 🎨\n---\nMy words.\n")
    (vae_space / "requirements.txt").write_text("torch\n")
    staged = stage_space("vae", tmp_path / "staged", "tester/vae-tiny")
    card = SpaceCard((staged / "README.md").read_text())
    assert card.data.title == "My own" and card.data.models == ["tester/vae-tiny"] and card.data.emoji == "🎨"
    assert "My words." in card.text and (staged / "requirements.txt").read_text() == "torch\n"
    assert same_weights(load_strict(vae, staged / "checkpoint"), make_model(vae))


def test_a_space_without_checkpoint_or_app(vae_space: Path, tmp_path: Path) -> None:
    assert "--model" in sentence(lambda: stage_space("vae", tmp_path / "staged"))
    assert "There is one for: vae" in sentence(lambda: stage_space("gan", tmp_path / "staged"))
    assert "no paper 'vea'" in sentence(lambda: stage_space("vea", tmp_path / "staged"))
    shutil.rmtree(vae_space)
    assert "come with a checkout" in sentence(lambda: run_locally("vae"))


def test_a_space_runs_here_with_its_model(vae_space: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_locally("vae", run) == 3
    assert run_locally("vae", "tester/vae") == 3
    assert capfd.readouterr().out.split() == [str(run), "tester/vae"]


@pytest.mark.parametrize("key", sorted(papers()))
def test_the_metadata_of_every_space_is_valid(key: str) -> None:
    paper = papers()[key]
    data, errors = front_matter(space_card(paper, PACKAGE.parent / "spaces" / key))
    assert errors == [] == metadata_errors(data, "space")
    assert len(data["title"]) <= 60 and len(data["short_description"]) <= 60 and data["app_file"] == "app.py"


def test_requirements_are_pinned_and_short_descriptions_are_short() -> None:
    lines = requirements().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines[1:]) and any(
        x.startswith("transformers==") for x in lines
    )
    assert shorten("a few words", 60) == "a few words" and shorten("one two three", 9) == "one two…"


def test_snapshot_of_a_push_is_a_bundle(hub: HubServer, logged_in: str, run: Path, vae: Paper) -> None:
    push_run(run, "tester/vae")
    folder = Path(snapshot_download("tester/vae"))
    assert json.loads((folder / "results.json").read_text()) == RESULTS
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == RECIPE
    assert same_weights(AutoModel.from_pretrained(folder), make_model(vae))
