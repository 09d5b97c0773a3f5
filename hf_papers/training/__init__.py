"""The one loop, and what a paper brings to it: arguments, recipes, the task, checkpoints. No paper is known here."""
