"""`hf-papers train PAPER --help`: every option a paper's training takes, with its value in the recipe."""

from __future__ import annotations

import dataclasses
import textwrap

from hf_papers.training.recipe import Recipe, load_recipe, option_types


def describe_options(paper_key: str, recipe_name: str) -> str:
    recipe = load_recipe(paper_key, recipe_name)
    paper = recipe.paper
    types_of = option_types(paper, recipe.task_class)
    lines = [
        f"usage: hf-papers train {paper.key} [--recipe {{{','.join(paper.recipes)}}}] [--OPTION VALUE …]",
        "",
        f"{paper.title} ({paper.authors}, {paper.year}). Values in brackets are those of the recipe '{recipe.name}'.",
    ]
    titles = {
        "task": f"{paper.key}: the task",
        "model": f"{paper.key}: the model",
        "data": "data",
        "training": "training",
    }
    for section, title in titles.items():
        lines += ["", f"{title}:"] if types_of[section] else []
        lines += [_line(recipe, section, name) for name in types_of[section]]
    return "\n".join(lines)


def _line(recipe: Recipe, section: str, name: str) -> str:
    holder = recipe.config if section == "model" else getattr(recipe, section)
    text = {entry.name: entry.metadata.get("help", "") for entry in dataclasses.fields(holder)}.get(name, "")
    head = f"  --{name} [{getattr(holder, name)}]"
    return textwrap.fill(f"{head}  {text}".rstrip(), width=110, subsequent_indent=" " * 6)
