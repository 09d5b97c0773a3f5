"""Fine-tune BERT on GLUE: `accelerate launch scripts/run_glue.py --task_name mrpc --model_name_or_path FOLDER_OR_HUB_ID`.

The option names are those of transformers' run_glue_no_trainer.py; every option of `hf-papers train bert` works too.
"""

import sys

from hf_papers.studies.bert.glue_runs import main


if __name__ == "__main__":
    main(sys.argv[1:])
