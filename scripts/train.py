"""Train a paper: `accelerate launch scripts/train.py vae --recipe mnist`. The same options as `hf-papers train`."""

import sys

from hf_papers.cli import main


if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
