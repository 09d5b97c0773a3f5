"""Spaces as visitors meet them: the real app in its own process, a real browser in front of it, no network behind it.

A Space's own file holds one subclass of `SpaceTests`: it says which checkpoint is served, which tabs and endpoints there are
and adds what only this Space can be asked. What every Space must do is tested here, once for each subclass.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from urllib.parse import urlparse

import pytest
import torch
import yaml
from packaging.requirements import Requirement

from hf_papers.errors import UserError
from hf_papers.registry import find_paper


ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts" / "spaces"
START_SECONDS = 300  # imports of torch, transformers and Gradio on a busy machine


def offline_environment(**more: str) -> dict[str, str]:
    """The environment of an app that must do without the network, and knows of no checkpoint but those it is told."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GRADIO") and not name.endswith("_ID")  # MODEL_ID and its like
    }
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


def start_app(app: Path, variables: dict[str, str]) -> Server:
    """The app, answering; fails with its output when it ends or stays silent."""
    port = free_port()
    environment = offline_environment(GRADIO_SERVER_PORT=str(port), GRADIO_SERVER_NAME="127.0.0.1", **variables)
    process = subprocess.Popen(
        [sys.executable, str(app)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    server = Server(process, f"http://127.0.0.1:{port}/")
    threading.Thread(target=server.follow, daemon=True).start()
    if not server.ready.wait(START_SECONDS) or process.poll() is not None:
        process.kill()
        pytest.fail(f"{app} did not start:\n{server.output}")
    return server


def load_app(key: str) -> ModuleType:
    """`spaces/<key>/app.py` as a module, without serving it."""
    name = f"space_app_{key}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "spaces" / key / "app.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def save_random_model(folder: Path, key: str, preset: str, **options: Any) -> Any:
    """A small checkpoint with random weights: what a page shows need not be good, only right. Returns its config."""
    paper = find_paper(key)
    config = paper.config_class.from_preset(preset, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = paper.model_class(config)
    for parameter in model.parameters():
        parameter.data.mul_(3.0)  # away from the near-constant outputs of a fresh network
    model.save_pretrained(folder)
    return config


def save_random_image_model(folder: Path, key: str, preset: str) -> None:
    """`save_random_model`, and the image processor for images of the model's size."""
    config = save_random_model(folder, key, preset)
    size = {"height": config.image_size, "width": config.image_size}
    find_paper(key).image_processor_class(size=size).save_pretrained(folder)


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

    def set_slider(self, name: str, value: float) -> None:
        """Type into the number beside a slider and leave it, as a visitor does."""
        field = self.page.locator(f"#{name} input[type=number]")
        field.fill(str(value))
        field.press("Enter")

    def set_number(self, name: str, value: str) -> None:
        field = self.page.locator(f"#{name} input")
        field.fill(value)
        field.press("Enter")

    def draw_seven(self) -> None:
        """A seven, with the mouse, on the drawing pad."""
        canvas = self.page.locator("#pad canvas")
        canvas.wait_for()
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        points = [(0.3, 0.25), (0.7, 0.25), (0.5, 0.75)]
        x, y = ([box["x"] + box["width"] * a for a, _ in points], [box["y"] + box["height"] * b for _, b in points])
        mouse = self.page.mouse
        mouse.move(x[0], y[0])
        mouse.down()
        for a, b in zip(x[1:], y[1:], strict=True):
            mouse.move(a, b, steps=12)
        mouse.up()

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


class SpaceTests:
    """What every Space is asked. A subclass names its paper and brings its checkpoint."""

    key: ClassVar[str]
    tabs: ClassVar[dict[str, str | None]]  # title -> id of a picture that the tab shows by itself, if any
    endpoints: ClassVar[set[str]]

    @classmethod
    def save_checkpoint(cls, folder: Path) -> None:
        """Write the checkpoint that is served into an empty folder."""
        raise NotImplementedError

    @classmethod
    def variables(cls, folder: Path) -> dict[str, str]:
        """Environment by which the app is told of what `save_checkpoint` wrote."""
        return {"MODEL_ID": str(folder)}

    @pytest.fixture(scope="class")
    @classmethod
    def checkpoint(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp(f"{cls.key}-checkpoint")
        cls.save_checkpoint(folder)
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, checkpoint: Path) -> Iterator[Server]:
        """The app, started once for all tests of the class."""
        server = start_app(ROOT / "spaces" / cls.key / "app.py", cls.variables(checkpoint))
        yield server
        server.process.terminate()
        server.process.wait(timeout=30)

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, server: Server) -> Any:
        """Calls by name, as programs make them."""
        from gradio_client import Client

        return Client(server.url, verbose=False)

    @pytest.fixture
    def visit(self, browser: Any, server: Server) -> Iterator[Callable[..., Visit]]:
        """Open the Space in a window of a given size."""
        contexts = []

        def open_space(width: int = 1280, height: int = 900) -> Visit:
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

    def test_fits_a_phone(self, visit: Callable[..., Visit]) -> None:
        page = visit(width=390, height=844)
        for tab, shown in self.tabs.items():
            page.open_tab(tab)
            if shown is not None:
                page.picture(shown)
            assert page.overflow() <= 0, f"'{tab}' is {page.overflow()} pixels wider than a phone"
            page.screenshot(f"{self.key}-phone-{tab.lower().strip('?').replace(' ', '-')}")
        header = page.page.locator(".paper-header a")
        assert header.get_attribute("href") == find_paper(self.key).source[0]

    def test_serves_only_the_endpoints_it_means_to(self, client: Any) -> None:
        named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
        assert set(named) == self.endpoints

    def test_without_a_checkpoint_it_says_how_to_get_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a sentence; that the process then ends with it, the kit's own test says."""
        for name in [name for name in os.environ if name.endswith("_ID")]:
            monkeypatch.delenv(name)
        app = load_app(self.key)
        monkeypatch.setattr(app, "CHECKPOINT", tmp_path / "checkpoint")
        with pytest.raises(UserError, match=f"hf-papers train {self.key} .*MODEL_ID"):
            app.build()

    def test_metadata_and_requirements_are_what_hugging_face_needs(self) -> None:
        folder = ROOT / "spaces" / self.key
        metadata = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
        assert metadata["sdk"] == "gradio" and metadata["app_file"] == "app.py"
        assert metadata["sdk_version"] == version("gradio")
        assert 0 < len(metadata["title"]) <= 60 and 0 < len(metadata["short_description"]) <= 60
        lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
        for line in (line for line in lines if line and not line.startswith("-")):
            requirement = Requirement(line)
            installed = version(requirement.name).split("+")[0]
            assert installed in requirement.specifier, f"{line}, but tested with {installed}"
