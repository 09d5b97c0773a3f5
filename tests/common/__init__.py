"""What every registered model must pass. See `cases.py` for how a paper adjusts it."""
