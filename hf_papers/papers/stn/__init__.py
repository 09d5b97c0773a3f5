"""Spatial Transformer Networks (Jaderberg, Simonyan, Zisserman and Kavukcuoglu, 2015)."""

from hf_papers.registry import Paper


PAPER = Paper(
    key="stn",
    title="Spatial Transformer Networks",
    authors="Max Jaderberg, Karen Simonyan, Andrew Zisserman, Koray Kavukcuoglu",
    year=2015,
    arxiv="1506.02025",
    summary="A network learns where to look: it turns, shifts and enlarges its own input before it classifies it.",
    config="configuration_stn:PaperStnConfig",
    models={"AutoModelForImageClassification": "modeling_stn:PaperStnForImageClassification"},
    image_processor="image_processing_stn:PaperStnImageProcessor",
    task="training_stn:StnTask",
    parameters={  # all of one budget, of the about 400,000 that appendix A.4 speaks of
        "cluttered-st-cnn": 403_372,
        "cluttered-cnn": 400_250,
        "cluttered-st-fcn": 399_616,
        "cluttered-fcn": 397_943,
        "addition": 398_426,
    },
    headline="cluttered-st-cnn",
    pipeline_tag="image-classification",
    tags=("spatial-transformer", "image-classification", "attention"),
)
