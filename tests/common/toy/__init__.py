"""A small model written by the rules that every paper follows. The suite is tried on it, and on broken copies of it."""
