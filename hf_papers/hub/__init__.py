"""To and from the Hugging Face Hub: strict loading, self-contained bundles, cards, publishing, Spaces."""
