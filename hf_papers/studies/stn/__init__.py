"""Spatial transformers: with and without them, on every distortion, at one budget of parameters."""
