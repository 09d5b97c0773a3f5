"""Auto-Encoding Variational Bayes (Kingma and Welling, 2013)."""

from hf_papers.registry import Paper


PAPER = Paper(
    key="vae",
    title="Auto-Encoding Variational Bayes",
    authors="Diederik P. Kingma, Max Welling",
    year=2013,
    arxiv="1312.6114",
    summary="An encoder and a decoder learn together to explain images by a few hidden numbers, and to draw new ones.",
    config="configuration_vae:PaperVaeConfig",
    models={"AutoModel": "modeling_vae:PaperVaeModel"},
    image_processor="image_processing_vae:PaperVaeImageProcessor",
    task="training_vae:VaeTask",
    parameters={"paper": 815_824},
    pipeline_tag="unconditional-image-generation",
    tags=("vae", "image-generation", "representation-learning"),
)
