"""The command line. Nothing heavy is imported before a command needs it, so that `hf-papers --help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from hf_papers import __version__
from hf_papers.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are sentences with the nearest right word."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message and "'" in message:
            word = message.split("'")[1]
            message = (
                f"There is no command '{word}'.{nearest(word, COMMANDS)} The commands are: {', '.join(COMMANDS)}."
            )
        raise UserError(message[0].upper() + message[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 when it worked, 2 with a sentence when the user can mend what went wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        options, rest = build_parser().parse_known_args(words)
        command: Callable[[argparse.Namespace, list[str]], int | None] = COMMANDS[options.command]
        status = command(options, rest)
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"hf-papers: {error}", file=sys.stderr)
        status = getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("hf-papers: stopped by Ctrl-C.", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status or 0)


def exit_by(program: str, command: Callable[[list[str]], int], words: Sequence[str]) -> NoReturn:
    """Run a script's command and exit: 0 when it worked, 2 with a sentence when the user can mend what went wrong."""
    try:
        status = command(list(words))
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        status = getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print(f"{program}: stopped by Ctrl-C.", file=sys.stderr)
        status = 130
    sys.exit(status)


def build_parser() -> Parser:
    parser = Parser(
        prog="hf-papers",
        description="The papers deep learning stands on: train, evaluate, publish and play with them.",
        epilog="hf-papers train PAPER --help lists every option of a paper. --debug shows the traceback of an error.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf-papers {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, help: str, **kwargs: object) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help, allow_abbrev=False, **kwargs)

    add("list", "the papers, their year, size and recipes")
    info = add("info", "a paper's config, layers with shapes, parameters beside the paper's, FLOPs")
    info.add_argument("paper")
    info.add_argument("--preset", help="a named size of the config; all of them when not given")
    train = add("train", "train a paper by a recipe; any option of it can be overridden by name", add_help=False)
    train.add_argument("paper", nargs="?")
    train.add_argument("--recipe", default="embedded", help="name of a recipe, or a YAML file")
    train.add_argument("-h", "--help", action="store_true", dest="wants_help")
    tokenizer = add(
        "train-tokenizer", "train a paper's vocabulary on the texts of a data set and save it as a tokenizer"
    )
    tokenizer.add_argument("paper")
    tokenizer.add_argument("--source", required=True, help="data set: user/name on the Hub, a folder, embedded:<name>")
    tokenizer.add_argument("--source_config", help="which configuration, for data sets that have several")
    tokenizer.add_argument("--split", default="train", help="rows to learn from, e.g. train or train[:10000]")
    tokenizer.add_argument("--column", default="text", help="the column that holds the texts; several by comma")
    tokenizer.add_argument("--vocab_size", type=int, default=8192, help="tokens, the special ones included")
    tokenizer.add_argument("--min_frequency", type=int, default=2, help="of a piece to become a token")
    case = tokenizer.add_mutually_exclusive_group()
    case.add_argument(
        "--lowercase",
        action="store_true",
        default=None,
        help="fold upper case (and accents, in BERT, which does so anyhow)",
    )
    case.add_argument("--no_lowercase", action="store_false", dest="lowercase", default=None, help="keep it")
    tokenizer.add_argument("--output_dir", type=Path, required=True, help="folder to write the tokenizer to")
    evaluate = add("evaluate", "measure a finished run again; data and task options can be overridden by name")
    evaluate.add_argument("run", type=Path)
    push = add("push", "publish a finished run to the Hub, with its code and card")
    push.add_argument("run", type=Path)
    push.add_argument("repo_id")
    push.add_argument("--private", action="store_true")
    push.add_argument("--revision", help="branch to publish to")
    space = add("space", "run a paper's Space here (space PAPER), or publish it (space push PAPER REPO_ID)")
    space.add_argument("words", nargs="+", metavar="PAPER | push PAPER REPO_ID")
    space.add_argument("--model", help="Hub id or folder of the checkpoint to show instead of the bundled one")
    export = add("export", "a finished run in another format")
    export.add_argument("run", type=Path)
    export.add_argument("--onnx", action="store_true", help="ONNX, checked against PyTorch in onnxruntime")
    export.add_argument(
        "--int8", action="store_true", help="int8 weights with one scale per row: a quarter of the bytes"
    )
    export.add_argument(
        "--output", type=Path, help="what to write: the ONNX file (RUN/model.onnx) or the int8 folder (RUN/int8)"
    )
    report = add("report", "several runs of a recipe as one results.json, card and figures")
    report.add_argument("runs", type=Path, nargs="+", help="runs, and reports to which they are added")
    report.add_argument("--output", type=Path, required=True, help="folder, e.g. model_cards/vae-mnist")
    return parser


def list_papers(options: argparse.Namespace, rest: list[str]) -> None:
    from hf_papers.registry import papers

    refuse_leftovers(rest)
    rows = [("paper", "year", "parameters", "recipes", "title")]
    for paper in papers().values():
        sizes = ", ".join(f"{name} {count:,}" for name, count in paper.parameters.items())
        rows.append((paper.key, str(paper.year), sizes, ", ".join(paper.recipes), paper.title))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def info(options: argparse.Namespace, rest: list[str]) -> None:
    from hf_papers.inspection import describe, inspect_paper
    from hf_papers.registry import find_paper

    refuse_leftovers(rest)
    print(describe(inspect_paper(find_paper(options.paper), options.preset)))


def train(options: argparse.Namespace, rest: list[str]) -> int | None:
    if options.paper is None:
        if options.wants_help:
            print("usage: hf-papers train PAPER [--recipe NAME] [--OPTION VALUE …]\n")
            print("hf-papers list shows the papers and recipes; hf-papers train PAPER --help the options of one.")
            return None
        raise UserError("Which paper? hf-papers train PAPER; hf-papers list shows them.")
    from hf_papers.training.recipe import load_recipe

    overrides = parse_overrides(rest)
    if options.wants_help:
        from hf_papers.training.help import describe_options

        print(describe_options(options.paper, options.recipe))
        return None
    recipe = load_recipe(options.paper, options.recipe, overrides)
    from hf_papers.training.launcher import inside_launcher, refuse_half_a_launch, relaunch

    refuse_half_a_launch()
    processes = recipe.training.num_processes or 1
    if processes > 1 and not inside_launcher():
        words = [word for pair in (("--" + key, value) for key, value in overrides.items()) for word in pair]
        return relaunch(processes, ["train", options.paper, "--recipe", options.recipe, *words])

    from hf_papers.registry import register_all
    from hf_papers.training.finish import run_recipe

    register_all()
    try:
        folder = run_recipe(recipe)
    except RuntimeError as error:
        if inside_launcher() and "Connection closed by peer" in str(error):
            raise UserError("Another process of this run has ended; its own sentence says why.") from error
        raise
    if os.environ.get("RANK", "0") == "0":
        print_results(folder)
    return None


def print_results(folder: Path) -> None:
    """Where the run lies and what it measured, beside what its recipe expects."""
    import json

    results = json.loads((folder / "results.json").read_text())
    for split, metrics in results["metrics"].items():
        for name, value in metrics.items():
            band = results["expected"].get(name) if split == "test" else None
            print(f"{split:<10} {name:<28} {value:.4f}" + (f"   expected {band}" if band else ""))
    print(f"\nThe run is in {folder}: weights ({results['weights']}), config, card, results.json and figures/.")


def train_tokenizer(options: argparse.Namespace, rest: list[str]) -> None:
    from hf_papers.data.arguments import DataArguments
    from hf_papers.registry import find_paper, papers

    refuse_leftovers(rest)
    paper = find_paper(options.paper)
    if paper.tokenizer_trainer is None:
        able = ", ".join(key for key, other in papers().items() if other.tokenizer_trainer) or "none"
        raise UserError(f"The paper '{paper.key}' has no tokenizer to train. Papers that have one: {able}.")
    if options.output_dir.exists() and (not options.output_dir.is_dir() or any(options.output_dir.iterdir())):
        raise UserError(f"{options.output_dir} exists and is not empty: give another --output_dir.")
    from hf_papers.data.texts import Texts

    theirs = [column.strip() for column in options.column.split(",")]
    columns = {"text" if number == 0 else f"text{number + 1}": name for number, name in enumerate(theirs)}
    data = DataArguments(
        dataset=options.source,
        dataset_config=options.source_config,
        train_split=options.split,
        columns={ours: theirs for ours, theirs in columns.items() if ours != theirs},
    )
    case = {} if options.lowercase is None else {"lowercase": options.lowercase}
    texts = Texts(data, list(columns))
    tokenizer = paper.resolve(paper.tokenizer_trainer)(
        texts, options.vocab_size, min_frequency=options.min_frequency, **case
    )
    tokenizer.save_pretrained(options.output_dir)
    print(f"Written: a vocabulary of {len(tokenizer):,} tokens in {options.output_dir}.")


def evaluate(options: argparse.Namespace, rest: list[str]) -> None:
    from hf_papers.registry import register_all
    from hf_papers.training.finish import evaluate_run

    overrides = parse_overrides(rest)
    register_all()
    for split, metrics in evaluate_run(options.run, overrides).items():
        for name, value in metrics.items():
            print(f"{split:<10} {name:<28} {value:.4f}")


def push(options: argparse.Namespace, rest: list[str]) -> None:
    from hf_papers.hub.publish import check_can_push, push_run
    from hf_papers.registry import register_all

    refuse_leftovers(rest)
    check_can_push(options.repo_id)
    register_all()
    print(f"Published at {push_run(options.run, options.repo_id, private=options.private, revision=options.revision)}")


def space(options: argparse.Namespace, rest: list[str]) -> int | None:
    from hf_papers.hub.spaces import deploy, run_locally

    refuse_leftovers(rest)
    if options.words[0] != "push":
        if len(options.words) > 1:
            raise UserError("hf-papers space takes one paper, or: hf-papers space push PAPER REPO_ID.")
        return run_locally(options.words[0], options.model)
    if len(options.words) != 3:
        raise UserError("Publishing a Space needs a paper and a repository: hf-papers space push PAPER user/name.")
    print(f"Published at {deploy(options.words[1], options.words[2], options.model)}")
    return None


def export(options: argparse.Namespace, rest: list[str]) -> None:
    from hf_papers.registry import register_all

    refuse_leftovers(rest)
    if not options.onnx and not options.int8:
        raise UserError("Export to what? Add --onnx or --int8.")
    if options.onnx and options.int8 and options.output is not None:
        raise UserError("--output names one thing to write: export --onnx and --int8 one after the other.")
    register_all()
    from hf_papers.hub.export import export_int8, export_onnx

    if options.onnx:
        print(f"Written and checked: {export_onnx(options.run, options.output or options.run / 'model.onnx')}")
    if options.int8:
        folder = export_int8(options.run, options.output or options.run / "int8")
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        print(f"Written and checked: {folder} ({size / 1e6:.2f} MB)")


def report(options: argparse.Namespace, rest: list[str]) -> None:
    from hf_papers.reports import write_report

    refuse_leftovers(rest)
    write_report(options.runs, options.output)
    print(f"Written: {options.output}/results.json, README.md and figures.")


COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], int | None]] = {
    "list": list_papers,
    "info": info,
    "train": train,
    "train-tokenizer": train_tokenizer,
    "evaluate": evaluate,
    "push": push,
    "space": space,
    "export": export,
    "report": report,
}


def refuse_leftovers(rest: list[str]) -> None:
    if rest:
        raise UserError(f"This command does not know '{rest[0]}'. hf-papers COMMAND --help lists what it takes.")


def parse_overrides(words: list[str]) -> dict[str, str]:
    """`--name value`, `--name=value`, `--flag` and `--no_flag` as a mapping; dashes inside names count as underscores."""
    overrides: dict[str, str] = {}
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("--"):
            raise UserError(f"'{word}' stands alone: options are written as --name value.")
        name, separator, value = word[2:].partition("=")
        name = name.replace("-", "_")
        following = words[position + 1] if position + 1 < len(words) else None
        if separator:
            overrides[name] = value
        elif following is not None and not following.startswith("--"):
            overrides[name] = following
            position += 1
        elif name.startswith("no_"):
            overrides[name.removeprefix("no_")] = "false"
        else:
            overrides[name] = "true"
        position += 1
    return overrides


if __name__ == "__main__":
    main()
