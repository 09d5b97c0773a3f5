"""To and from the Hugging Face Hub: strict loading, self-contained bundles, cards, publishing, Spaces."""

# What goes with weights: how texts and images become inputs, and what they measured.
COMPANIONS = (
    "preprocessor_config.json",
    "results.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
