"""A few of the Hub's rules for the metadata of cards; it refuses a commit whose README.md breaks them."""

from __future__ import annotations

import re
from typing import Any

import yaml


def front_matter(content: str) -> tuple[dict[str, Any], list[str]]:
    """The YAML block at the head of a card, and what is wrong with it."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\r?\n|$)", content, re.DOTALL)
    if match is None:
        return {}, []
    try:
        data = yaml.safe_load(match.group(1)) or {}
    except yaml.YAMLError as error:
        return {}, [f"the metadata is not valid YAML: {error}"]
    return (data, []) if isinstance(data, dict) else ({}, ["the metadata is not a mapping"])


LICENCES = {
    "mit",
    "apache-2.0",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "other",
    "unknown",
    "openrail",
}


def metadata_errors(data: dict[str, Any], kind: str) -> list[str]:
    errors = []
    lists = {"tags": str, "datasets": str, "metrics": str, "language": str, "model-index": dict, "models": str}
    for name, item_type in lists.items():
        value = data.get(name, [])
        value = [value] if isinstance(value, str) and name in ("datasets", "language") else value
        if not isinstance(value, list) or not all(isinstance(item, item_type) for item in value):
            errors.append(f'"{name}" must be an array of {item_type.__name__}')
    licence = data.get("license")
    for value in licence if isinstance(licence, list) else [licence]:
        if value is not None and value not in LICENCES:
            errors.append(f'"license" must be one of {sorted(LICENCES)}, not {value!r}')
    for name in ("library_name", "pipeline_tag", "base_model"):
        if not isinstance(data.get(name, ""), (str, list) if name == "base_model" else str):
            errors.append(f'"{name}" must be a string')
    errors += model_index_errors(data.get("model-index", []))
    if kind == "space" and data and data.get("sdk") not in ("gradio", "docker", "static", "streamlit"):
        errors.append('"sdk" must be one of [gradio, docker, static, streamlit]')
    return errors


def model_index_errors(index: Any) -> list[str]:
    """A model-index entry needs a name and results of task.type, dataset.type, dataset.name and numbered metrics."""
    errors = []
    for entry in index if isinstance(index, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            errors.append('"model-index[].name" is required')
            continue
        for result in entry.get("results", []):
            if not isinstance(result.get("task", {}).get("type"), str):
                errors.append('"model-index[].results[].task.type" is required')
            if not all(isinstance(result.get("dataset", {}).get(key), str) for key in ("type", "name")):
                errors.append('"model-index[].results[].dataset" needs "type" and "name"')
            for metric in result.get("metrics") or [{}]:
                if "value" not in metric or not isinstance(metric.get("type"), str):
                    errors.append('"model-index[].results[].metrics[]" needs "type" and "value"')
    return errors
