"""Study a BERT beyond one number: `python scripts/study_bert.py few-shot --model_name_or_path FOLDER_OR_HUB_ID`.

The studies are few-shot, frozen, embeddings, attention and ablations; `--help` names their options.
"""

import sys

from hf_papers.studies.bert.commands import main


if __name__ == "__main__":
    main(sys.argv[1:])
