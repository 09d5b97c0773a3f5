"""With and without a spatial transformer, on every distortion: `python scripts/study_stn.py --seeds 0,1,2`."""

import sys

from hf_papers.cli import exit_by
from hf_papers.registry import register_all
from hf_papers.studies.stn.distortions import command


if __name__ == "__main__":
    register_all()
    exit_by("study_stn.py", command, sys.argv[1:])
