"""Spaces as visitors meet them: the real app in its own process, a real browser in front of it, no network behind it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest


ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts" / "spaces"
NO_BROWSER = "no browser to look at the Spaces with: apt-get install chromium, and pip install 'hf-papers[test]'"
BROWSER_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START_SECONDS = 300  # imports of torch, transformers and Gradio on a busy machine


def offline_environment(**more: str) -> dict[str, str]:
    """The environment of an app that must do without the network."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO")}
    environment.pop("MODEL_ID", None)
    environment.pop("CLASSIFIER_ID", None)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    offline = {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1"}
    return {**environment, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **offline, **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A running app. Its output is read as it comes: the line that names the address says that it is ready."""

    process: subprocess.Popen[str]
    url: str
    ready: threading.Event = field(default_factory=threading.Event)
    lines: list[str] = field(default_factory=list)

    def follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if "Running on local URL" in line:
                self.ready.set()
        self.ready.set()  # it ended: whoever waits shall see why

    @property
    def output(self) -> str:
        return "".join(self.lines)


def start_app(app: Path, model: Path) -> Server:
    """The app, answering; fails with its output when it ends or stays silent."""
    port = free_port()
    environment = offline_environment(
        MODEL_ID=str(model),
        CLASSIFIER_ID=str(model / "classifier"),  # read by BERT's alone
        GRADIO_SERVER_PORT=str(port),
        GRADIO_SERVER_NAME="127.0.0.1",
    )
    process = subprocess.Popen(
        [sys.executable, str(app)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    server = Server(process, f"http://127.0.0.1:{port}/")
    threading.Thread(target=server.follow, daemon=True).start()
    if not server.ready.wait(START_SECONDS) or process.poll() is not None:
        process.kill()
        pytest.fail(f"{app} did not start:\n{server.output}")
    return server


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of each paper, with random weights: what a page shows need not be good, only right."""
    import torch

    from hf_papers import find_paper

    chosen = {"vae": "tiny", "gan": "tiny", "dqn": "cartpole", "lenet": "paper"}
    framed = ("lenet",)  # whose processor puts a margin around pictures that are smaller than the model's
    folders = {}
    for key, preset in chosen.items():
        paper, folder = find_paper(key), tmp_path_factory.mktemp(f"{key}-checkpoint")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = paper.model_class(paper.config_class.from_preset(preset))
            for parameter in model.parameters():
                parameter.data.mul_(3.0)  # away from the near-constant outputs of a fresh network
        model.save_pretrained(folder)
        if paper.image_processor_class is not None:
            size = {"height": model.config.image_size, "width": model.config.image_size}
            options = {} if key in framed else {"size": size}
            paper.image_processor_class(**options).save_pretrained(folder)
        folders[key] = folder
    folders["bert"] = bert_checkpoints(tmp_path_factory.mktemp("bert-checkpoint"))
    return folders


BERT_TEXTS = [
    "the movie was so good that we left before the end",
    "she opened the door and looked at the letter quickly and slowly",
    "a warm funny and moving film, it is one of the best of the year .",
]


def bert_checkpoints(folder: Path) -> Path:
    """A tiny BERT with int8 weights and its tokenizer, and in `classifier` one that sorts texts, exact weights."""
    import torch

    from hf_papers import find_paper
    from hf_papers.hub.quantized import save_quantized
    from hf_papers.papers.bert.tokenization_bert import train_tokenizer

    paper, tokenizer = find_paper("bert"), train_tokenizer(BERT_TEXTS, 90, min_frequency=1)
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    config = paper.config_class.from_preset("tiny", vocab_size=90, max_position_embeddings=40, **labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = paper.model_class(config)
        classifier = paper.model_classes["AutoModelForSequenceClassification"](config)
        for network in (model, classifier):
            for parameter in network.parameters():
                parameter.data.mul_(3.0)
    save_quantized(model, folder)
    classifier.save_pretrained(folder / "classifier")
    for place in (folder, folder / "classifier"):
        tokenizer.save_pretrained(place)
    return folder


@pytest.fixture(scope="session")
def serve(models: dict[str, Path]) -> Iterator[Callable[[str], Server]]:
    """Paper -> its app, started once for all tests."""
    servers: dict[str, Server] = {}

    def start(key: str) -> Server:
        if key not in servers:
            servers[key] = start_app(ROOT / "spaces" / key / "app.py", models[key])
        return servers[key]

    yield start
    for server in servers.values():
        server.process.terminate()
        server.process.wait(timeout=30)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium of the system, or a skip that says how to get one."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip(NO_BROWSER)
    playwright = pytest.importorskip("playwright.sync_api", reason=NO_BROWSER)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=BROWSER_FLAGS)
        yield chromium
        chromium.close()


@dataclass
class Visit:
    """A page and what went over the wire while it was open."""

    page: Any
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def picture(self, name: str) -> str:
        """Address of a shown picture; Gradio names files by their content, so it changes when the picture does."""
        image = self.page.locator(f"#{name} img")
        image.wait_for()
        return image.get_attribute("src")

    def wait_for_change(self, name: str, before: str) -> str:
        """The picture's new address, once it differs from `before`."""
        self.page.wait_for_function(
            "([name, before]) => { const image = document.querySelector(`#${name} img`);"
            " return image && image.getAttribute('src') !== before && image.complete && image.naturalWidth > 0; }",
            arg=[name, before],
        )
        return self.picture(name)

    def open_tab(self, name: str) -> None:
        tab = self.page.get_by_role("tab", name=name)
        tab.click()
        self.page.locator("[role=tab][aria-selected=true]", has_text=name).wait_for()

    def complaint(self) -> str:
        """The sentence in the error message that the page shows."""
        toast = self.page.get_by_test_id("toast-body").first
        toast.wait_for()
        return toast.inner_text()

    def screenshot(self, name: str) -> Path:
        """Keep a picture of the whole page for people to look at."""
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        self.page.screenshot(path=path, full_page=True)
        return path

    def foreign_requests(self) -> list[str]:
        """Requests that went anywhere but to this machine."""
        addresses = [urlparse(url) for url in self.requests]
        return [
            url.geturl() for url in addresses if url.scheme not in ("data", "blob") and url.hostname != "127.0.0.1"
        ]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture
def visit(browser: Any, serve: Callable[[str], Server]) -> Iterator[Callable[..., Visit]]:
    """Open a paper's Space in a window of a given size."""
    contexts = []

    def open_space(key: str, width: int = 1280, height: int = 900) -> Visit:
        server = serve(key)
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        context.set_default_timeout(120_000)
        visit = Visit(context.new_page())
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.on("pageerror", lambda error: visit.problems.append(str(error)))
        visit.page.goto(server.url)
        visit.page.locator(".paper-header h1").wait_for()
        return visit

    yield open_space
    for context in contexts:
        context.close()
