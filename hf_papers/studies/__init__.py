"""Several runs of one paper compared: what a single number does not tell. One folder per paper, used by `scripts/`."""
