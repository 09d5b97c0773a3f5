"""The papers are found by their folders, and each keeps the rules that let the rest of the house know nothing of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import transformers

import hf_papers
from hf_papers.errors import UserError, nearest
from hf_papers.registry import PAPERS_FOLDER, Paper, find_paper, papers, register_all


PACKAGE = Path(hf_papers.__file__).parent
ROOT = PACKAGE.parent
TRAVELLING = (
    "configuration_",
    "modeling_",
    "conversion_",
    "image_processing_",
)  # files that go to the Hub as remote code
MAY_TRAVEL = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy"}
FLOORS = {  # who may import whom, within hf_papers; a floor that is not named may import everything
    "errors": set(),
    "registry": {"errors"},
    "data": {"errors", "registry", "data"},
    "metrics": {"errors", "registry", "metrics", "hub"},  # a feature network is a checkpoint
    "hub": {"errors", "registry", "hub"},
    "training": {"errors", "registry", "training", "data", "metrics", "hub"},
    "papers": {"errors", "registry", "papers", "training", "data", "metrics", "hub"},
}
every_paper = pytest.mark.parametrize("paper", papers().values(), ids=lambda paper: paper.key)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(level, module) of every import in a file, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def test_every_folder_is_a_paper() -> None:
    folders = {path.parent.name for path in PAPERS_FOLDER.glob("*/__init__.py")}
    assert folders == set(papers()) == {paper.key for paper in papers().values()}
    assert {"vae", "gan", "dqn"} <= folders
    years = [paper.year for paper in papers().values()]
    assert years == sorted(years)


def test_a_new_folder_is_found_without_a_list(tmp_path: Path) -> None:
    """A copy of the package with one more folder lists one more paper."""
    copy = tmp_path / "hf_papers"
    (copy / "papers" / "zeta").mkdir(parents=True)
    for name in ("errors.py", "registry.py"):
        (copy / name).write_bytes((PACKAGE / name).read_bytes())
    (copy / "__init__.py").touch()
    (copy / "papers" / "__init__.py").touch()
    (copy / "papers" / "zeta" / "__init__.py").write_text(
        "from hf_papers.registry import Paper\n"
        "PAPER = Paper(key='zeta', title='Z', authors='A', year=1999, arxiv='1', summary='S', config='c:C',"
        " models={'AutoModel': 'm:M'}, task='t:T')\n"
    )
    code = "from hf_papers.registry import papers; print(list(papers()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['zeta']"


def test_a_misspelt_paper_gets_the_nearest() -> None:
    assert find_paper("vae").key == "vae"
    with pytest.raises(UserError, match="no paper 'vaee'. Did you mean 'vae'"):
        find_paper("vaee")
    with pytest.raises(UserError, match="The papers are: .*vae"):
        find_paper("entirely different")


def test_nearest_is_silent_when_nothing_is_near() -> None:
    assert nearest("learning_rat", ["learning_rate", "seed"]) == " Did you mean 'learning_rate'?"
    assert nearest("xyzzy", ["learning_rate", "seed"]) == ""


@every_paper
def test_what_a_paper_names_exists(paper: Paper) -> None:
    key = paper.key.capitalize()
    assert paper.config_class.__name__.startswith(f"Paper{key}")
    assert paper.config_class.model_type.startswith("paper-")
    assert all(c.__name__.startswith(f"Paper{key}") for c in paper.model_classes.values())
    assert all(c.config_class is paper.config_class for c in paper.model_classes.values())
    assert paper.model_class is next(iter(paper.model_classes.values()))
    assert paper.folder.is_dir() and paper.url.startswith("https://")
    assert paper.url.endswith(paper.arxiv) if paper.arxiv else paper.page and paper.venue
    assert paper.parameters and set(paper.parameters) <= set(paper.config_class.presets)
    assert "tiny" in paper.config_class.presets


@every_paper
def test_a_paper_s_task_and_recipes_exist(paper: Paper) -> None:
    assert paper.task_class.__module__ == f"hf_papers.papers.{paper.key}.{paper.task.split(':')[0]}"
    assert paper.recipes and all(path.is_file() for path in paper.recipes.values())


def test_model_types_are_unique() -> None:
    types = [paper.config_class.model_type for paper in papers().values()]
    assert len(types) == len(set(types))


@every_paper
def test_auto_classes_know_the_paper(paper: Paper) -> None:
    register_all()
    config = transformers.AutoConfig.for_model(paper.config_class.model_type)
    assert type(config) is paper.config_class
    for auto, model_class in paper.model_classes.items():
        mapping = getattr(transformers, auto)._model_mapping
        assert mapping[paper.config_class] is model_class


@every_paper
def test_code_that_travels_imports_only_what_is_there(paper: Paper) -> None:
    """Only same-folder imports go to the Hub with a checkpoint, and hf_papers is not there."""
    for path in paper.folder.glob("*.py"):
        if not path.name.startswith(TRAVELLING):
            continue
        for level, module in imports_of(path):
            if level:
                assert level == 1 and (path.parent / f"{module}.py").is_file(), (
                    f"{path.name}: from {'.' * level}{module}"
                )
                assert module.startswith(TRAVELLING), f"{path.name} takes {module} along"
            else:
                top = module.split(".")[0]
                assert top in MAY_TRAVEL | set(sys.stdlib_module_names) | {"PIL"}, f"{path.name} imports {module}"


@every_paper
def test_a_paper_knows_no_other_paper(paper: Paper) -> None:
    for path in paper.folder.rglob("*.py"):
        for _, module in imports_of(path):
            if module.startswith("hf_papers.papers."):
                assert module.split(".")[2] == paper.key, f"{path.name} imports {module}"


def test_floors_only_use_what_is_below() -> None:
    """training, data, metrics and hub know no paper; nothing below reaches up."""
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        floor, allowed = parts[0], FLOORS.get(parts[0])
        if allowed is None:
            continue
        for level, module in imports_of(path):
            names = module.split(".")
            if level == 0 and names[0] == "hf_papers" and len(names) > 1 and names[1] not in allowed:
                wrong.append(f"{'/'.join(parts)} ({floor}) imports {module}")
    assert not wrong, wrong


def test_no_files_import_each_other_in_a_circle() -> None:
    """Neither when they are loaded, nor inside functions, nor for a type alone: one could not be read without the other."""
    files = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in PACKAGE.rglob("*.py")}

    def find(place: Path, level: int, module: str) -> str | None:
        folder = place.parents[level - 1].relative_to(ROOT).as_posix() + "/" if level else ""
        name = folder + module.replace(".", "/")
        return next((found for found in (name, f"{name}/__init__") if found in files), None)

    needs = {
        name: {found for level, module in imports_of(path) if (found := find(path, level, module)) not in (None, name)}
        for name, path in files.items()
    }
    assert sum(map(len, needs.values())) > len(files), "imports were not found"
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_public_names_are_lazy() -> None:
    assert hf_papers.PaperVaeModel is find_paper("vae").model_class
    assert "PaperGanConfig" in dir(hf_papers)
    with pytest.raises(AttributeError, match="PaperNothing"):
        hf_papers.PaperNothing  # noqa: B018


@pytest.mark.parametrize(("program", "loaded"), [("hf-papers", False), ("python", True)])
def test_the_command_does_not_import_torch_before_it_must(program: str, loaded: bool) -> None:
    """`hf-papers --help` is to answer at once; everybody else gets the Auto classes from the import."""
    code = f"import sys; sys.argv[0] = {program!r}; import hf_papers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == str(loaded)
