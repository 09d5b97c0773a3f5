"""BERT: all tasks of GLUE in one table, few examples, frozen features, maps of sentences, heads, ablations."""
