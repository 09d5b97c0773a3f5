"""The local Hub against the real clients: what it answers is what they understand, and its faults are theirs to handle."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.metadata import front_matter, metadata_errors
from tests.hub.server import HubServer, User, main, parse_range


pytest_plugins = ["tests.hub.fixtures"]

CARD = "---\nlicense: mit\nlibrary_name: transformers\ntags: [one]\n---\n# A card\n"


def table_bytes(rows: int = 1000, row_group_size: int = 100) -> bytes:
    """A parquet file of `rows` numbers."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": list(range(rows))}), sink, row_group_size=row_group_size)
    return sink.getvalue().to_pybytes()


# ------------------------------------------------------------------------------------------------------------ who you are


def test_whoami_knows_its_tokens(hub: HubServer) -> None:
    assert HfApi().whoami(hub.token)["name"] == "tester"
    with pytest.raises(LocalTokenNotFoundError):
        HfApi().whoami()
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi().whoami("hf_nobody")
    assert refused.value.response.status_code == 401


def test_writing_needs_a_token_with_the_right(hub: HubServer) -> None:
    for token, repo_id, status in [
        (False, "tester/x", 401),
        ("hf_reader", "reader/x", 403),
        (hub.token, "somebody/x", 403),
        ("hf_nobody", "tester/x", 401),
    ]:
        with pytest.raises(HfHubHTTPError) as refused:
            HfApi(token=token).create_repo(repo_id)
        assert refused.value.response.status_code == status
    assert hub.repos == {}
    hub.add_repo("model", "somebody/x", {"a.txt": "a"})
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(token=hub.token).upload_file(path_or_fileobj=b"b", path_in_repo="a.txt", repo_id="somebody/x")
    assert refused.value.response.status_code == 403
    assert hub.repos["model", "somebody/x"].files == {"a.txt": b"a"}


def test_a_private_repository_does_not_exist_for_others(hub: HubServer) -> None:
    hub.add_repo("model", "tester/secret", {"a.txt": "a"}, private=True)
    assert HfApi(token=hub.token).model_info("tester/secret").private
    for token in (False, "hf_reader"):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).model_info("tester/secret")
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).hf_hub_download("tester/secret", "a.txt")
    assert Path(hf_hub_download("tester/secret", "a.txt", token=hub.token)).read_text() == "a"


# -------------------------------------------------------------------------------------------------------- what is missing


def test_what_is_missing_is_named_as_the_hub_names_it(hub: HubServer) -> None:
    hub.add_repo("model", "tester/m", {"a.txt": "a"})
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("tester/none")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().dataset_info("tester/m")  # a model is no data set
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("gpt2")
    with pytest.raises(RevisionNotFoundError):
        HfApi().model_info("tester/m", revision="none")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("tester/m", "a.txt", revision="none")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("tester/m", "b.txt")
    with pytest.raises(EntryNotFoundError):
        list(HfApi().list_repo_tree("tester/m", "folder"))


# ---------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_upload_and_read_back(hub: HubServer, tmp_path: Path, kind: str) -> None:
    contents = {
        "README.md": CARD.encode(),
        "empty.txt": b"",
        "deep/er/a.txt": b"text",
        "w.safetensors": os.urandom(5000),
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    if kind == "space":
        contents["README.md"] = CARD.replace("license", "sdk: gradio\nlicense").encode()
        (tmp_path / "README.md").write_bytes(contents["README.md"])
    api = HfApi(token=hub.token)
    options = {"space_sdk": "gradio"} if kind == "space" else {}
    url = api.create_repo("tester/x", repo_type=kind, **options)
    assert (url.repo_id, url.repo_type) == ("tester/x", kind)
    with pytest.raises(HfHubHTTPError):
        api.create_repo("tester/x", repo_type=kind, **options)
    api.create_repo("tester/x", repo_type=kind, exist_ok=True, **options)
    done = api.upload_folder(repo_id="tester/x", folder_path=tmp_path, repo_type=kind, commit_message="all")
    info = api.repo_info("tester/x", repo_type=kind, files_metadata=True)
    assert info.sha == done.oid
    assert {s.rfilename for s in info.siblings} == {*contents, ".gitattributes"}
    weights = next(s for s in info.siblings if s.rfilename == "w.safetensors")
    assert weights.lfs.sha256 == hashlib.sha256(contents["w.safetensors"]).hexdigest()
    assert next(s for s in info.siblings if s.rfilename == "deep/er/a.txt").lfs is None
    assert info.card_data["license"] == "mit" and "license:mit" in info.tags
    folder = Path(snapshot_download("tester/x", repo_type=kind))
    assert {name: (folder / name).read_bytes() for name in contents} == contents
    assert api.list_repo_commits("tester/x", repo_type=kind)[0].title == "all"
    api.delete_repo("tester/x", repo_type=kind)
    assert not api.repo_exists("tester/x", repo_type=kind)


def test_an_answer_that_has_arrived_is_in_the_log(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    release, log = threading.Event(), hub.log
    monkeypatch.setattr(hub, "log", lambda request: (release.wait(10), log(request)))
    hub.forget_requests()
    httpx2.get(f"{hub.url}/api/models/tester/none")
    threading.Timer(0.05, release.set).start()
    assert [request.path for request in hub.seen()] == ["/api/models/tester/none"]


def test_unchanged_files_are_not_sent_again(hub: HubServer, logged_in: str) -> None:
    api = HfApi()
    api.create_repo("tester/x")
    content = os.urandom(2000)
    first = api.upload_file(path_or_fileobj=content, path_in_repo="w.safetensors", repo_id="tester/x")
    hub.forget_requests()
    again = api.upload_file(path_or_fileobj=content, path_in_repo="w.safetensors", repo_id="tester/x")
    assert again.oid == first.oid and not hub.seen("^POST .*/commit/")
    api.upload_file(path_or_fileobj=content, path_in_repo="copy.safetensors", repo_id="tester/x")
    assert not hub.seen("^PUT /lfs/"), "an object that is there already was uploaded once more"


def test_large_files_travel_in_parts(logged_in: str, hub: HubServer) -> None:
    hub.part_size = 1000
    content = os.urandom(3500)
    api = HfApi()
    api.create_repo("tester/x")
    api.upload_file(path_or_fileobj=content, path_in_repo="w.bin", repo_id="tester/x")
    assert len(hub.seen("^PUT /lfs/.*/part/")) == 4
    assert hub.repos["model", "tester/x"].files["w.bin"] == content


def test_commits_are_atomic_and_know_their_parent(logged_in: str, hub: HubServer) -> None:
    api = HfApi()
    repo = hub.add_repo("model", "tester/x", {"a.txt": "a", "old/b.txt": "b", "old/c.txt": "c"})
    start = api.model_info("tester/x").sha
    operations = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("a.txt"), CommitOperationDelete("old/")]
    done = api.create_commit("tester/x", operations, commit_message="swap", parent_commit=start)
    assert repo.files == {"new.txt": b"new"}
    with pytest.raises(HfHubHTTPError) as refused:
        late = [CommitOperationAdd("late.txt", b"late")]
        api.create_commit("tester/x", late, commit_message="late", parent_commit=start)
    assert refused.value.response.status_code == 412
    with pytest.raises(HfHubHTTPError):  # the second operation is impossible, so the first is not done either
        impossible = [CommitOperationAdd("one.txt", b"1"), CommitOperationDelete("none.txt")]
        api.create_commit("tester/x", impossible, commit_message="impossible")
    assert repo.files == {"new.txt": b"new"} and repo.branches["main"].sha == done.oid


def test_a_commit_cannot_point_to_an_object_that_is_not_there(logged_in: str, hub: HubServer) -> None:
    hub.add_repo("model", "tester/x")
    pointer = {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}
    lines = [{"key": "header", "value": {"summary": "s", "description": ""}}, pointer]
    answer = httpx2.post(
        f"{hub.url}/api/models/tester/x/commit/main",
        content="\n".join(map(json.dumps, lines)),
        headers={"Authorization": f"Bearer {hub.token}"},
    )
    assert answer.status_code == 400 and hub.repos["model", "tester/x"].files == {}


def test_a_card_with_wrong_metadata_is_refused(logged_in: str, hub: HubServer) -> None:
    api = HfApi()
    api.create_repo("tester/x")
    for wrong in ("license: my-own", "tags: one", "model-index: [{results: []}]", "a: [", "library_name: [x]"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            api.upload_file(
                path_or_fileobj=f"---\n{wrong}\n---\n".encode(), path_in_repo="README.md", repo_id="tester/x"
            )
    assert "README.md" not in hub.repos["model", "tester/x"].files
    assert metadata_errors(front_matter(CARD)[0], "model") == []
    assert metadata_errors(front_matter(CARD)[0], "space") != []


# -------------------------------------------------------------------------------------------------------------- revisions


def test_branches_tags_and_commits(logged_in: str, hub: HubServer) -> None:
    api = HfApi()
    api.create_repo("tester/x")
    first = api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="tester/x").oid
    api.create_tag("tester/x", tag="v1")
    api.create_branch("tester/x", branch="dev/new")  # a slash in the name
    api.upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="tester/x", revision="dev/new")
    last = api.upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id="tester/x").oid
    found = {
        r: Path(hf_hub_download("tester/x", "a.txt", revision=r)).read_text() for r in ("main", "v1", "dev/new", first)
    }
    assert found == {"main": "3", "v1": "1", "dev/new": "2", first: "1"}
    refs = api.list_repo_refs("tester/x")
    assert {b.name for b in refs.branches} == {"main", "dev/new"} and [t.target_commit for t in refs.tags] == [first]
    assert [c.commit_id for c in api.list_repo_commits("tester/x")][:2] == [last, first]
    with pytest.raises(HfHubHTTPError):
        api.create_branch("tester/x", branch="dev/new")
    api.delete_branch("tester/x", branch="dev/new")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("tester/x", revision="dev/new")


# ---------------------------------------------------------------------------------------------------- listing and reading


def test_trees_are_paged_nested_and_expanded(hub: HubServer) -> None:
    hub.page_size = 3
    files = {f"folder/sub{n % 2}/{n}.txt": str(n) for n in range(8)} | {"top.txt": "top"}
    hub.add_repo("dataset", "tester/d", files)
    api = HfApi()
    everything = list(api.list_repo_tree("tester/d", repo_type="dataset", recursive=True))
    assert {e.path for e in everything} == {*files, "folder", "folder/sub0", "folder/sub1"}
    assert len(hub.seen("/tree/main")) == 4  # 12 entries, 3 a page
    assert [e.path for e in api.list_repo_tree("tester/d", "folder", repo_type="dataset")] == [
        "folder/sub0",
        "folder/sub1",
    ]
    expanded = list(api.list_repo_tree("tester/d", "folder/sub1", repo_type="dataset", expand=True))
    assert all(e.last_commit.title == "initial commit" and e.security.safe for e in expanded)
    found = api.get_paths_info("tester/d", ["top.txt", "folder", "none"], repo_type="dataset")
    assert [e.path for e in found] == ["top.txt", "folder"]


def test_ranges_etags_and_heads(hub: HubServer) -> None:
    content = os.urandom(1000)
    hub.add_repo("model", "tester/x", {"w.bin": content, "a.txt": "text"})
    url = f"{hub.url}/tester/x/resolve/main/w.bin"
    for wanted, expected in [("bytes=0-9", content[:10]), ("bytes=990-", content[990:]), ("bytes=-7", content[-7:])]:
        answer = httpx2.get(url, headers={"Range": wanted})
        assert (answer.status_code, answer.content) == (206, expected)
        assert answer.headers["Content-Range"].endswith("/1000")
    assert httpx2.get(url, headers={"Range": "bytes=1000-"}).status_code == 416
    head = httpx2.head(url)
    assert head.content == b"" and head.headers["Content-Length"] == "1000"
    assert head.headers["X-Linked-Etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert head.headers["X-Repo-Commit"] == hub.repos["model", "tester/x"].branches["main"].sha
    assert httpx2.get(url, headers={"If-None-Match": head.headers["ETag"]}).status_code == 304
    text = httpx2.head(f"{hub.url}/tester/x/resolve/main/a.txt")
    assert (
        text.headers["ETag"].strip('"') == hashlib.sha1(b"blob 4\0text").hexdigest()
        and "X-Linked-Etag" not in text.headers
    )


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=3-100", (3, 10)),
        ("bytes=-100", (0, 10)),
        ("bytes=10-", None),
        ("bytes=5-2", None),
        ("bytes=-0", None),
        ("bytes=-", None),
        ("lines=1-2", None),
    ],
)
def test_parse_range(header: str, span: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == span


def test_the_file_system_reads_parts_of_files(hub: HubServer) -> None:
    content = os.urandom(300_000)
    hub.add_repo("dataset", "tester/d", {"data/x.bin": content})
    files = HfFileSystem()
    assert files.ls("datasets/tester/d/data", detail=False) == ["datasets/tester/d/data/x.bin"]
    with files.open("datasets/tester/d/data/x.bin", block_size=1000) as file:
        file.seek(200_000)
        assert file.read(10) == content[200_000:200_010]
    assert 0 < hub.bytes_sent("x.bin") < 10_000, "more than the part that was asked for went over the line"


def test_a_cached_file_is_not_sent_twice(hub: HubServer) -> None:
    hub.add_repo("model", "tester/x", {"w.bin": os.urandom(500)})
    for _ in range(2):
        hf_hub_download("tester/x", "w.bin")
    assert hub.bytes_sent("^GET .*w.bin") == 500


# ---------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_served_read_only(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "me" / "numbers" / "data"
    folder.mkdir(parents=True)
    (folder / "train-00000-of-00001.parquet").write_bytes(table_bytes(10))
    (tmp_path / "secret.txt").write_text("not for you")
    with HubServer(tmp_path, users={"t": User("me")}) as server:
        api = HfApi(endpoint=server.url, token="t")
        info = api.dataset_info("me/numbers")
        assert [s.rfilename for s in info.siblings] == ["data/train-00000-of-00001.parquet"]
        with HubServer(tmp_path) as other:  # the same content has the same sha, so caches stay good
            assert HfApi(endpoint=other.url).dataset_info("me/numbers").sha == info.sha
        with pytest.raises(HfHubHTTPError) as refused:
            api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/numbers", repo_type="dataset")
        assert refused.value.response.status_code == 403
        for path in (
            "/datasets/../../resolve/main/secret.txt",
            "/datasets/me/numbers/resolve/main/../../../secret.txt",
        ):
            assert "not for you" not in httpx2.get(server.url + path).text
    with pytest.raises(FileNotFoundError, match="not a folder"):
        HubServer(tmp_path / "none")


def test_datasets_loads_and_streams_in_another_process() -> None:
    code = (
        "from datasets import load_dataset\n"
        "print(sum(load_dataset('tester/numbers', split='train')['id']))\n"
        "print(sum(row['id'] for row in load_dataset('tester/numbers', split='train', streaming=True)))"
    )
    with HubServer() as server:
        server.add_repo("dataset", "tester/numbers", {"data/train-00000-of-00001.parquet": table_bytes()})
        env = {**os.environ, **server.env(), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.split() == [str(sum(range(1000)))] * 2
        assert any((server.home / "datasets").iterdir())


def test_datasets_streams_in_this_process(hub: HubServer) -> None:
    from datasets import load_dataset

    hub.add_repo("dataset", "tester/numbers", {"data/train-00000-of-00001.parquet": table_bytes()})
    rows = load_dataset("tester/numbers", split="train", streaming=True)
    assert [row["id"] for row in rows] == list(range(1000))
    assert len(load_dataset("tester/numbers", split="train")) == 1000


def test_real_data_stream_over_http(real_data_hub: HubServer) -> None:
    from datasets import load_dataset

    row = next(iter(load_dataset("ylecun/mnist", split="train", streaming=True)))
    assert row["image"].size == (28, 28) and row["label"] == 5
    assert load_dataset("ylecun/mnist", split="test").num_rows == 10_000


# ----------------------------------------------------------------------------------------------------------------- faults


def test_a_busy_server_is_asked_again(hub: HubServer, without_waiting: list[float]) -> None:
    hub.add_repo("dataset", "tester/d", {"x.txt": "abc"})
    fault = hub.fail("GET /api/datasets/tester/d/tree", times=2, status=503)
    assert len(list(HfApi().list_repo_tree("tester/d", repo_type="dataset"))) == 1
    assert fault.struck == 2 and without_waiting == [1, 2]
    assert [r.status for r in hub.seen("/tree/")] == [503, 503, 200]


@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_a_server_that_stays_broken_is_given_up(hub: HubServer, without_waiting: list[float], status: int) -> None:
    hub.add_repo("model", "tester/x", {"a.txt": "a"})
    hub.fail("/tree/", times=None, status=status)
    with pytest.raises(HfHubHTTPError) as error:
        list(HfApi().list_repo_tree("tester/x"))
    assert error.value.response.status_code == status
    hub.heal()
    assert len(list(HfApi().list_repo_tree("tester/x"))) == 1


def test_a_cut_line_is_resumed_where_it_broke(hub: HubServer, without_waiting: list[float]) -> None:
    content = os.urandom(50_000_000)  # beyond what the client reads at once, so that some of it is kept
    hub.add_repo("model", "tester/x", {"w.bin": content})
    hub.fail("GET .*/w.bin", drop_after=30_000_000)
    assert Path(hf_hub_download("tester/x", "w.bin")).read_bytes() == content
    first, second = hub.seen("GET .*/w.bin")
    assert first.sent == 30_000_000 and second.range is not None and second.sent < 50_000_000
    hub.fail("GET .*/w.bin", drop_after=1000, reset=True)
    with pytest.raises(httpx2.ReadError):  # a reset is not resumed by huggingface_hub 2.4
        hf_hub_download("tester/x", "w.bin", force_download=True)


def test_a_line_that_is_always_cut_is_given_up(hub: HubServer, without_waiting: list[float]) -> None:
    hub.add_repo("model", "tester/x", {"w.bin": os.urandom(1000)})
    hub.fail("GET .*/w.bin", times=None, drop_after=10)
    with pytest.raises(httpx2.HTTPError):
        hf_hub_download("tester/x", "w.bin")
    hub.heal()
    hub.fail("HEAD .*/w.bin", times=None, drop_after=0)
    with pytest.raises(httpx2.RemoteProtocolError):
        hf_hub_download("tester/x", "w.bin", force_download=True)


def test_a_stream_survives_cuts_and_503s(hub: HubServer, without_waiting: list[float]) -> None:
    from datasets import load_dataset

    hub.add_repo("dataset", "tester/numbers", {"data/train-00000-of-00001.parquet": table_bytes(100_000, 1000)})
    rows = load_dataset("tester/numbers", split="train", streaming=True)
    hub.fail("GET .*parquet", skip=1, drop_after=5000)
    hub.fail("GET .*parquet", skip=1, drop_after=5000, reset=True)
    hub.fail("GET .*parquet", skip=1, times=2, status=503)
    assert [row["id"] for row in rows] == list(range(100_000))
    assert [fault.struck for fault in hub.faults] == [1, 1, 2]


def test_short_and_damaged_answers(hub: HubServer) -> None:
    content = b"0" * 1000
    hub.add_repo("model", "tester/x", {"a.txt": content})
    hub.fail("GET .*/a.txt", truncate=1)
    with pytest.raises(OSError, match="Consistency check failed"):
        hf_hub_download("tester/x", "a.txt")
    hub.fail("GET .*/a.txt", corrupt=True)
    damaged = Path(hf_hub_download("tester/x", "a.txt")).read_bytes()  # the client checks the size only
    assert len(damaged) == 1000 and sum(a != b for a, b in zip(damaged, content, strict=True)) == 1


def test_an_upload_that_is_damaged_on_the_way_is_refused(logged_in: str, hub: HubServer) -> None:
    api = HfApi()
    api.create_repo("tester/x")
    hub.fail("PUT /lfs/", corrupt=True)
    with pytest.raises(RuntimeError, match="w.safetensors") as error:
        api.upload_file(path_or_fileobj=os.urandom(100), path_in_repo="w.safetensors", repo_id="tester/x")
    assert "damaged on the way" in str(error.value.__cause__)
    assert "w.safetensors" not in hub.repos["model", "tester/x"].files


def test_a_slow_answer_times_out(hub: HubServer) -> None:
    hub.add_repo("model", "tester/x", {"a.txt": "a"})
    hub.fail("GET /api/models", delay=0.5)
    with pytest.raises(httpx2.TimeoutException):
        HfApi().model_info("tester/x", timeout=0.05)
    assert HfApi().model_info("tester/x", timeout=10).id == "tester/x"


def test_the_log_counts_requests_and_bytes(hub: HubServer) -> None:
    hub.add_repo("model", "tester/x", {"a.txt": "abc"})
    httpx2.get(f"{hub.url}/tester/x/resolve/main/a.txt", headers={"Range": "bytes=1-1"})
    httpx2.post(f"{hub.url}/api/models/tester/x/paths-info/main", json={"paths": ["a.txt"]})
    got, asked = hub.seen()
    assert (got.method, got.status, got.sent, got.range) == ("GET", 206, 1, "bytes=1-1")
    body = b'{"paths":["a.txt"]}'
    assert (asked.method, asked.status, asked.received) == ("POST", 200, len(body))
    assert hub.bytes_sent("^GET") == 1 and "bytes=1-1" in str(got)


# ----------------------------------------------------------------------------------------------------------- command line


def test_the_command_prints_its_endpoint_and_serves(tmp_path: Path) -> None:
    (tmp_path / "models" / "me" / "x").mkdir(parents=True)
    (tmp_path / "models" / "me" / "x" / "config.json").write_text("{}")
    command = [sys.executable, "-m", "tests.hub.server", "--root", str(tmp_path), "--port", "0"]
    project = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=project) as process:
        try:
            name, _, endpoint = process.stdout.readline().strip().partition("=")
            assert name == "HF_ENDPOINT"
            assert HfApi(endpoint=endpoint, token=False).model_info("me/x").siblings[0].rfilename == "config.json"
        finally:
            process.terminate()


def test_the_command_refuses_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path / "none")]) == 2
    assert "none is not a folder" in capsys.readouterr().err
