"""`make demo`: train a VAE on the embedded digits, load the run back as a stranger would, and say where everything lies."""

from pathlib import Path

from transformers import AutoImageProcessor, AutoModel

import hf_papers  # noqa: F401  registers the Auto classes
from hf_papers.cli import print_results
from hf_papers.training.finish import run_recipe
from hf_papers.training.recipe import load_recipe


def main() -> None:
    recipe = load_recipe("vae", "embedded", {"output_dir": "runs/demo", "overwrite_output_dir": "true"})
    print(f"Training the VAE (https://huggingface.co/papers/1312.6114) on the embedded digits: {recipe.description}")
    folder = run_recipe(recipe)
    print_results(folder)

    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    print(f"\nLoaded back: {type(model).__name__}, {model.num_parameters():,} parameters, {type(processor).__name__}.")
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and path.relative_to(folder).parts[0] not in ("checkpoints", "logs", "best"):
            print(f"  {path}  ({path.stat().st_size:,} bytes)")
    print("\nTry next:")
    print("  .venv/bin/hf-papers list")
    print("  .venv/bin/hf-papers info vae")
    print("  .venv/bin/hf-papers train dqn")


if __name__ == "__main__":
    main()
