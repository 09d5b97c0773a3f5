"""Gradient-Based Learning Applied to Document Recognition (LeCun, Bottou, Bengio and Haffner, 1998): LeNet-5."""

from hf_papers.registry import Paper


PAPER = Paper(
    key="lenet",
    title="Gradient-Based Learning Applied to Document Recognition",
    authors="Yann LeCun, Léon Bottou, Yoshua Bengio, Patrick Haffner",
    year=1998,
    arxiv=None,
    summary="A convolutional network reads handwritten digits: small filters, shared over the image, learned from examples.",
    config="configuration_lenet:PaperLenetConfig",
    models={"AutoModelForImageClassification": "modeling_lenet:PaperLenetForImageClassification"},
    image_processor="image_processing_lenet:PaperLenetImageProcessor",
    task="training_lenet:LenetTask",
    parameters={"paper": 60_000, "modern": 61_706},
    pipeline_tag="image-classification",
    tags=("lenet", "image-classification"),
    page="https://doi.org/10.1109/5.726791",
    venue="Proceedings of the IEEE 86 (11)",
)
