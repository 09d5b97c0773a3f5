"""Measure generators of any paper with one ruler: `python scripts/measure_generators.py RUN RUN --ruler FOLDER_OR_HUB_ID`.

Takes finished runs, checkpoints and Hub ids of GAN, VAE and DCGAN; `--help` names the options.
"""

import sys

from hf_papers.studies.generators import main


if __name__ == "__main__":
    main(sys.argv[1:])
