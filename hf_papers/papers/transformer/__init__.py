"""Attention Is All You Need (Vaswani et al., 2017)."""

from hf_papers.registry import Paper


PAPER = Paper(
    key="transformer",
    title="Attention Is All You Need",
    authors="Ashish Vaswani, Noam Shazeer, Niki Parmar, Jakob Uszkoreit, Llion Jones, Aidan N. Gomez, Łukasz Kaiser, "
    "Illia Polosukhin",
    year=2017,
    arxiv="1706.03762",
    summary="An encoder and a decoder that read and write text by attention alone, without recurrence or convolution.",
    config="configuration_transformer:PaperTransformerConfig",
    models={
        "AutoModelForSeq2SeqLM": "modeling_transformer:PaperTransformerForSeq2SeqLM",
        "AutoModel": "modeling_transformer:PaperTransformerModel",
        "AutoModelForSequenceClassification": "modeling_transformer:PaperTransformerForSequenceClassification",
    },
    task="training_transformer:TranslationTask",
    tokenizer_trainer="tokenization_transformer:train_tokenizer",
    tasks={"classification": "training_classification:ClassificationTask"},
    parameters={"base": 63_082_496, "big": 214_245_376},
    pipeline_tag="translation",
    tags=("transformer", "translation", "attention", "seq2seq"),
)
