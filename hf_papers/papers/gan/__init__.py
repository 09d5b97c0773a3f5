"""Generative Adversarial Networks (Goodfellow et al., 2014)."""

from hf_papers.registry import Paper


PAPER = Paper(
    key="gan",
    title="Generative Adversarial Networks",
    authors="Ian J. Goodfellow, Jean Pouget-Abadie, Mehdi Mirza, Bing Xu, David Warde-Farley, Sherjil Ozair, "
    "Aaron Courville, Yoshua Bengio",
    year=2014,
    arxiv="1406.2661",
    summary="A generator learns to make images by fooling a discriminator that learns to tell them from real ones.",
    config="configuration_gan:PaperGanConfig",
    models={"AutoModel": "modeling_gan:PaperGanModel"},
    image_processor="image_processing_gan:PaperGanImageProcessor",
    task="training_gan:GanTask",
    parameters={"paper": 3_735_425},
    pipeline_tag="unconditional-image-generation",
    tags=("gan", "image-generation"),
)
