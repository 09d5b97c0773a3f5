"""The command behind scripts/study_bert.py: what BERT is remembered for beyond one number, a study at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from hf_papers.cli import exit_by
from hf_papers.errors import UserError, nearest


HELP = """usage: study_bert.py COMMAND [--OPTION VALUE …]

Commands:
  few-shot     zero-shot, 8, 32, 128 examples, all of them: a curve over seeds
                 --examples 8,32,128  --few_shot_steps 200  --few_shot_batch_size 8
                 --full_runs RUN,RUN  finished runs of run_glue.py, instead of training on everything here
                 --pattern "{text} It was {mask}."  --label_words "terrible,bad;great,good"
  frozen       the last layer alone on frozen features, against fine-tuning; --frozen_learning_rate 1e-3, --frozen_epochs
  embeddings   map of held-out texts before and after fine-tuning, with the agreement of neighbours
                 --fine_tuned RUN,RUN  finished runs instead of training here; --pooling cls|mean  --neighbours 10
  attention    where every head looks; --text_file FILE  --sentence TEXT  --max_rows 200
  ablations    table 5: --with_nsp RUN --without_nsp RUN --left_to_right RUN, each fine-tuned on --task_name sst2,mrpc
                 --commands  print the commands that make the three pre-trainings; --pretraining_recipe nltk-english
  table        write the studies' rows of the paper's README; --check changes nothing and fails where they are stale

Of all studies:
  --model_name_or_path   the start: a run of ours or a BERT checkpoint, folder or Hub id
  --task_name            one of GLUE's tasks with classes; sst2 when not given
  --seeds 0,1,2          (embeddings: 0)
  --max_train_rows N     learn from N rows at most
  --output DIR           results.json and pictures; model_cards/bert-study/COMMAND when not given
  --output_dir DIR       the trainings; runs/bert-study/COMMAND when not given. Finished ones are used again.

Every option of run_glue.py works too, e.g. --max_length 64 --learning_rate 3e-5 --num_train_epochs 1.
"""


def studies() -> dict[str, Callable]:
    from hf_papers.studies.bert.ablations import ablation_study
    from hf_papers.studies.bert.attention import attention_study
    from hf_papers.studies.bert.embeddings import embedding_study
    from hf_papers.studies.bert.learning import few_shot_study, frozen_study

    return {
        "few-shot": few_shot_study,
        "frozen": frozen_study,
        "embeddings": embedding_study,
        "attention": attention_study,
        "ablations": ablation_study,
    }


STUDIES = ("few-shot", "frozen", "embeddings", "attention", "ablations")


def main(words: Sequence[str]) -> NoReturn:
    """Run the command and exit, with a sentence where the user can mend what went wrong."""
    exit_by("study_bert.py", command, words)


def command(words: list[str], root: Path = Path()) -> int:
    if not words or "--help" in words or "-h" in words:
        print(HELP)
        return 0 if words else 2
    name, *rest = words
    if name == "table":
        return _table("--check" in rest, root)
    if name not in STUDIES:
        raise UserError(f"There is no study '{name}'.{nearest(name, STUDIES)} The studies are: {', '.join(STUDIES)}.")
    from hf_papers.registry import register_all
    from hf_papers.studies.bert.glue_runs import house_options
    from hf_papers.studies.bert.runs import Study

    register_all()
    options = house_options(rest)
    options.pop("report_to", None)
    study = Study.from_options(name, options, seeds="0" if name == "embeddings" else "0,1,2")
    if (path := studies()[name](study)) is not None:
        print(f"The record and its pictures are in {path.parent}.")
    return 0


def _table(check: bool, root: Path) -> int:
    from hf_papers.studies.bert.table import fill_readme

    path, text = fill_readme(root, STUDIES)
    if path.read_text(encoding="utf-8") == text:
        return 0
    if check:
        print(f"{path} does not say what the records say: run python scripts/study_bert.py table")
        return 1
    path.write_text(text, encoding="utf-8")
    print(f"wrote the studies of {path}")
    return 0
