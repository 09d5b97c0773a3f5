"""Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks (Radford et al., 2015)."""

from hf_papers.registry import Paper


PAPER = Paper(
    key="dcgan",
    title="Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
    authors="Alec Radford, Luke Metz, Soumith Chintala",
    year=2015,
    arxiv="1511.06434",
    summary="Convolutions, strides and batch norm make the adversarial game stable, and its networks useful features.",
    config="configuration_dcgan:PaperDcganConfig",
    models={"AutoModel": "modeling_dcgan:PaperDcganModel"},
    image_processor="image_processing_dcgan:PaperDcganImageProcessor",
    task="training_dcgan:DcganTask",
    parameters={"paper": 23_694_592, "common": 6_342_272},
    pipeline_tag="unconditional-image-generation",
    tags=("dcgan", "gan", "image-generation"),
)
