"""One plain gradient step of the VAE on rows and noise fixed beforehand; run as one process or as two with half the rows."""

from collections.abc import Iterator
from typing import Any

import torch

from hf_papers.papers.vae.training_vae import VaeTask
from hf_papers.training.recipe import load_recipe
from hf_papers.training.run import Run
from hf_papers.training.trainer import Trainer


ROWS = 32


class FixedBatchTask(VaeTask):
    """Every process takes its share of the same rows, in order, with the noise that belongs to them."""

    def batches(self, networks: Any, context: Any) -> Iterator[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(5)
        config = self.recipe.config
        pixels = torch.rand(ROWS, 1, config.image_size, config.image_size, generator=generator)
        noise = torch.randn(ROWS, config.latent_size, generator=generator)
        share = slice(context.rank * ROWS // context.world_size, (context.rank + 1) * ROWS // context.world_size)
        while True:
            yield {"pixel_values": pixels[share], "noise": noise[share]}

    def losses(self, networks: Any, shadows: Any, batch: Any, step: int) -> Iterator[Any]:
        yield "model", networks["model"](**batch).loss, {}


def one_gradient_step(output_dir: str) -> None:
    overrides = {"optimizer": "sgd", "learning_rate": "1", "lr_scheduler_type": "constant", "max_steps": "1"}
    overrides |= {"use_cpu": "true", "report_to": "none", "output_dir": output_dir}
    recipe = load_recipe("vae", "embedded", overrides)
    trainer = Trainer(FixedBatchTask(recipe), Run(recipe.output_dir))
    trainer.prepare()
    trainer.train()
    trainer.end()
