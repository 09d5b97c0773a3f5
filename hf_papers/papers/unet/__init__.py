"""U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015)."""

from hf_papers.registry import Paper


PAPER = Paper(
    key="unet",
    title="U-Net: Convolutional Networks for Biomedical Image Segmentation",
    authors="Olaf Ronneberger, Philipp Fischer, Thomas Brox",
    year=2015,
    arxiv="1505.04597",
    summary="A network that narrows to see the whole and widens to place it exactly, and learns from a few drawn images.",
    config="configuration_unet:PaperUnetConfig",
    models={
        "AutoModelForSemanticSegmentation": "modeling_unet:PaperUnetForSemanticSegmentation",
        "AutoModel": "modeling_unet:PaperUnetModel",
    },
    image_processor="image_processing_unet:PaperUnetImageProcessor",
    task="training_unet:UnetTask",
    parameters={"paper": 31_030_658, "padded": 31_037_698},
    pipeline_tag="image-segmentation",
    tags=("unet", "image-segmentation", "biology", "microscopy"),
)
