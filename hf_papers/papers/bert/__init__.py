"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding (Devlin et al., 2018)."""

from hf_papers.registry import Paper


PAPER = Paper(
    key="bert",
    title="BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
    authors="Jacob Devlin, Ming-Wei Chang, Kenton Lee, Kristina Toutanova",
    year=2018,
    arxiv="1810.04805",
    summary="An encoder reads a text from both sides, learns by guessing masked words, and is then fine-tuned for tasks.",
    config="configuration_bert:PaperBertConfig",
    models={
        "AutoModelForPreTraining": "modeling_bert:PaperBertForPreTraining",
        "AutoModel": "modeling_bert:PaperBertModel",
        "AutoModelForMaskedLM": "modeling_bert:PaperBertForMaskedLM",
        "AutoModelForNextSentencePrediction": "modeling_bert:PaperBertForNextSentencePrediction",
        "AutoModelForSequenceClassification": "modeling_bert:PaperBertForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_bert:PaperBertForTokenClassification",
        "AutoModelForQuestionAnswering": "modeling_bert:PaperBertForQuestionAnswering",
    },
    task="training_bert:BertPretrainingTask",
    tokenizer_trainer="tokenization_bert:train_tokenizer",
    tasks={"glue": "training_glue:GlueTask"},
    parameters={"base": 110_106_428, "large": 336_226_108},
    pipeline_tag="fill-mask",
    tags=("bert", "fill-mask", "text-classification"),
)
