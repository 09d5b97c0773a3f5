"""Fixtures around the local Hub: `pytest_plugins = ["tests.hub.fixtures"]` in a test module brings them.

`huggingface_hub`, `datasets` and `transformers` read HF_ENDPOINT and the places of their caches when they are imported, so a
test has two ways to send them here:

- in a process of its own, with `env={**os.environ, **hub.env()}`: nothing to be patched, always right;
- in this process, through `connected`, which changes every place where those values were kept (they are listed there) and
  puts them back. The `hub` fixture does both: it patches this process and sets the environment for those it starts.

Code that was downloaded to be run (`trust_remote_code`) is best tried in a process of its own all the same: see `stranger`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.hub.server import HubServer


@contextmanager
def connected(server: HubServer, token: str | None = None) -> Iterator[None]:
    """The Hub's clients in this process, and in those that it starts, use `server` and caches of their own inside."""
    import datasets.config
    import huggingface_hub.constants as constants
    import transformers.dynamic_module_utils
    import transformers.utils.hub
    from huggingface_hub import hf_api

    env = server.env(token)
    home = server.home
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        values = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": constants.HF_URL_HOSTS | {"127.0.0.1"},
            "HF_HOME": env["HF_HOME"],
            "HF_HUB_CACHE": env["HF_HUB_CACHE"],
            "HUGGINGFACE_HUB_CACHE": env["HF_HUB_CACHE"],
            "HF_ASSETS_CACHE": env["HF_ASSETS_CACHE"],
            "HF_TOKEN_PATH": env["HF_TOKEN_PATH"],
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "AGENT_HARNESSES_PATH": str(home / "agents.json"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in values.items():
            patch.setattr(constants, name, value)
        patch.setattr(hf_api.api, "endpoint", server.url)  # behind huggingface_hub.create_repo, .whoami …
        for module in (transformers.utils.hub, transformers.dynamic_module_utils):
            patch.setattr(module, "HF_MODULES_CACHE", env["HF_MODULES_CACHE"])
        downloads = Path(env["HF_DATASETS_CACHE"]) / "downloads"
        values = {
            "HF_ENDPOINT": server.url,
            "HUB_DATASETS_URL": server.url + "/datasets/{repo_id}/resolve/{revision}/{path}",
            "HF_CACHE_HOME": env["HF_HOME"],
            "HF_DATASETS_CACHE": Path(env["HF_DATASETS_CACHE"]),
            "HF_MODULES_CACHE": Path(env["HF_MODULES_CACHE"]),
            "DOWNLOADED_DATASETS_PATH": downloads,
            "EXTRACTED_DATASETS_PATH": downloads / "extracted",
            "HF_HUB_OFFLINE": False,
            "HF_DATASETS_OFFLINE": False,
        }
        for name, value in values.items():
            patch.setattr(datasets.config, name, value)
        patch.setattr(sys, "path", list(sys.path))  # transformers appends the place of downloaded code
        forget_connections()
        try:
            yield
        finally:
            forget_connections()


def forget_connections() -> None:
    """Drops what clients keep of a Hub between calls: open connections, file systems, downloaded code."""
    from huggingface_hub import HfFileSystem, close_session

    close_session()
    HfFileSystem.clear_instance_cache()
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """An empty Hub that every client here uses, as somebody who is not logged in (see `logged_in`)."""
    with HubServer() as server, connected(server):
        yield server


@pytest.fixture
def logged_in(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The token of `tester`, who may write to `tester/…` and `tester-lab/…`, is in HF_TOKEN."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub.token


@pytest.fixture
def real_data_hub() -> Iterator[HubServer]:
    """A Hub with the data sets of the folder that HF_PAPERS_TEST_HUB names; skips the test where it names none."""
    root = os.environ.get("HF_PAPERS_TEST_HUB")
    if not root or not Path(root).is_dir():
        pytest.skip("set HF_PAPERS_TEST_HUB to a folder with datasets/<namespace>/<name> to run this on real data")
    with HubServer(root) as server, connected(server):
        yield server


@pytest.fixture
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The back-off of huggingface_hub, datasets and hf_papers.hub costs no time; the list holds how long it would have."""
    import datasets.utils.file_utils
    import huggingface_hub.file_download
    import huggingface_hub.utils._http

    import hf_papers.hub.publish

    waits: list[float] = []
    modules = [huggingface_hub.utils._http, huggingface_hub.file_download]
    for module in [*modules, datasets.utils.file_utils, hf_papers.hub.publish]:
        patient = SimpleNamespace(
            **{name: getattr(module.time, name) for name in ("time", "monotonic", "perf_counter")}
        )
        patient.sleep = waits.append
        monkeypatch.setattr(module, "time", patient)
    return waits


@pytest.fixture(scope="session")
def stranger_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every installed package but ours, however ours was installed."""
    folder = tmp_path_factory.mktemp("stranger")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = "hf_papers" in entry.name.replace("-", "_")
        if not ours and entry.suffix != ".pth":  # a .pth could lead back to this project
            (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def stranger(stranger_packages: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs code as somebody who does not have this project: in another process that provably cannot import it."""

    def run(code: str, env: dict[str, str]) -> str:
        lines = [
            "import sys, importlib.util",
            f"sys.path.insert(0, {str(stranger_packages)!r})",
            "assert importlib.util.find_spec('hf_papers') is None",
            code,
            "assert not any(name.split('.')[0] == 'hf_papers' for name in sys.modules)",
        ]
        (tmp_path / "stranger.py").write_text("\n".join(lines), encoding="utf-8")
        done = subprocess.run(  # -I: no PYTHONPATH, no current folder; -S: no site-packages but the folder above
            [sys.executable, "-I", "-S", str(tmp_path / "stranger.py")],
            env={**os.environ, **env, "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run
