"""The one training loop. It owns the accelerator, the steps, evaluation, checkpoints and resuming; it knows no paper."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from hf_papers.errors import UserError
from hf_papers.training.arguments import TrainingArguments
from hf_papers.training.checkpoint import resolve_resume, write_folder
from hf_papers.training.interruption import Interrupted, Interruption
from hf_papers.training.progress import Meter, Progress, check_trackers, tracker_config
from hf_papers.training.randomness import forked_randomness, get_random_state, seed_everything, set_random_state
from hf_papers.training.recipe import Recipe
from hf_papers.training.run import Run
from hf_papers.training.state import load_state, save_state
from hf_papers.training.task import Batch, Context, Task


# How often processes agree on stopping together. Rarer is cheaper, but a signal waits that many steps.
SYNC_STEPS = 10

PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass
class Player:
    """A network, as wrapped for this machine, and what moves it."""

    network: nn.Module
    optimizer: Optimizer
    parameters: list[nn.Parameter]


class Trainer:
    """Trains a task; what it leaves behind is in the folder of its `Run`.

    The network whose turn it is gets its gradient step as soon as `task.losses` yields, and nobody else's gradients are
    touched: that is what lets one loop train a classifier, two adversaries or a network that plays a game.
    """

    def __init__(self, task: Task, run: Run) -> None:
        self.task = task
        self.run = run
        self.arguments: TrainingArguments = task.arguments
        self.step = 0
        self.best: dict[str, Any] | None = None  # {"step": …, "value": …} of the best validation so far
        self.seconds = 0.0  # of training so far, over all resumes
        self.meter = Meter()

    # Set-up

    def prepare(self) -> None:
        """Build the networks, wrap them for the machine, and continue from a checkpoint where that is asked for."""
        arguments, task = self.arguments, self.task
        check_trackers(arguments.trackers)
        if arguments.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        self.accelerator = self._build_accelerator()
        self.context = Context(
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            seed=arguments.seed,
        )
        # Asking an accelerator whether a number is finite stalls it: there the losses are looked at when they are logged.
        self.watches_every_loss = self.context.device.type == "cpu"
        # Accelerate's wrappers look for optional packages at every step, half a millisecond each time. Without a loss
        # scaler and sharded parameters they do nothing else, so the step is taken without them.
        distributed = self.accelerator.distributed_type
        self.is_plain = self.accelerator.scaler is None and distributed in PLAIN
        recipe = self._as_started()
        self._on_first_process(lambda: self.run.claim(recipe))
        seed_everything(arguments.seed)  # the same weights on every process …
        self.model = task.build_model().to(self.context.device)
        if arguments.activation_checkpointing:
            self.model.activation_checkpointing_enable()
        self.model.train()
        self.processor = task.build_processor()
        bare = task.networks(self.model)
        self.shadow_rules = task.shadows()
        self.bare_networks = bare
        self.shadows = {name: rule.copy_of(bare[name]) for name, rule in self.shadow_rules.items()}
        optimizers = task.optimizers(bare)
        self.players = {name: self._player(bare[name], optimizers[name]) for name in bare}
        self.networks = {name: player.network for name, player in self.players.items()}
        self.optimizers = {name: player.optimizer for name, player in self.players.items()}
        self.total_steps = task.total_steps(self.context)
        seed_everything(arguments.seed, 1, self.context.rank)  # … but its own noise on each
        resumed = resolve_resume(arguments.resume, self.run.checkpoints) if arguments.resume else None
        if resumed is not None:
            self.restore(resumed)
        self._start_trackers()

    def _build_accelerator(self) -> Accelerator:
        arguments = self.arguments
        if arguments.mixed_precision == "fp16" and (arguments.use_cpu or not torch.cuda.is_available()):
            raise UserError("--mixed_precision fp16 needs a GPU; on the CPU use bf16.")
        # Accelerate remembers the precision of the first run in a process; a second run brings its own.
        AcceleratorState._reset_state(reset_partial_state=False)
        # Every process keeps its own running statistics within a step: broadcasting them at each forward would overwrite
        # what the backward of an earlier forward of the same step (real, then fake) still needs.
        unsynchronised_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
        return Accelerator(
            cpu=arguments.use_cpu,
            kwargs_handlers=[unsynchronised_buffers],
            mixed_precision=arguments.mixed_precision,
            log_with=arguments.trackers or None,
            project_dir=str(self.run.logs),
        )

    def _as_started(self) -> Recipe:
        """The recipe with the number of its processes, whoever started them: a run is continued with as many."""
        asked, started = self.arguments.num_processes, self.context.world_size
        if asked not in (None, started):
            raise UserError(
                f"--num_processes {asked} was asked for, and {started} process(es) were started: leave the option out where "
                "torchrun or accelerate launch starts them."
            )
        processes = started if started > 1 else None
        return replace(self.task.recipe, training=replace(self.arguments, num_processes=processes))

    def _player(self, network: nn.Module, optimizer: Optimizer) -> Player:
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        compiled = torch.compile(network) if self.arguments.torch_compile else network
        wrapped, optimizer = self.accelerator.prepare(compiled, optimizer)
        return Player(wrapped, optimizer, parameters)

    def _start_trackers(self) -> None:
        if self.arguments.trackers:
            recipe = self.task.recipe
            self.run.logs.mkdir(parents=True, exist_ok=True)
            self.accelerator.init_trackers(f"hf-papers-{recipe.paper.key}", tracker_config(recipe.to_dict()))

    def _on_first_process(self, action: Any) -> None:
        """Run `action` on the first process; a refusal there ends all processes, not one of them."""
        problem = None
        if self.accelerator.is_main_process:
            try:
                action()
            except UserError as error:
                problem = error
        failed = torch.tensor([problem is not None], device=self.accelerator.device)
        if bool(self.accelerator.gather(failed).any()):
            raise problem or UserError("The first process refused to start; its sentence says why.")

    # The loop

    def train(self) -> None:
        """Take the steps that are left. Raises `Interrupted` after a signal and `UserError` on a loss that is not finite."""
        arguments, task = self.arguments, self.task
        batches = task.batches(self.networks, self.context)
        examples = (
            arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * self.context.world_size
        )
        visible = arguments.progress and self.accelerator.is_main_process
        self.progress = Progress(self.total_steps, self.step, examples, visible)
        started = time.perf_counter()
        with Interruption() as interruption:
            while self.step < self.total_steps:
                task.schedule(self.optimizers, self.step, self.total_steps)
                self.update(batches)
                self.step += 1
                for name, rule in self.shadow_rules.items():
                    rule.follow(self.shadows[name], self.bare_networks[name], self.step)
                self.progress.advance()
                if self.step % arguments.logging_steps == 0 or self.step == self.total_steps:
                    self.log()
                if self._is_due(arguments.eval_steps):
                    self.evaluate_and_keep_best()
                stop = self._agree_to_stop(interruption)
                if stop or self._is_due(arguments.save_steps):
                    now = time.perf_counter()
                    self.seconds, started = self.seconds + now - started, now
                    self.save()
                if stop:
                    self._leave(stop)
        self.seconds += time.perf_counter() - started
        self.progress.close()

    def _is_due(self, every: int | None) -> bool:
        return (
            self.step == self.total_steps if every is None else self.step % every == 0 or self.step == self.total_steps
        )

    def update(self, batches: Any) -> None:
        """One optimiser step of every player, over `gradient_accumulation_steps` micro-batches."""
        count = self.arguments.gradient_accumulation_steps
        for index in range(count):
            batch = self._to_device(next(batches))
            last = index == count - 1
            with contextlib.nullcontext() if last else self._gradients_stay_local():
                self.play(batch, last, 1.0 / count)

    def play(self, batch: Batch, steps: bool, weight: float) -> None:
        """Let the task speak, and move whoever's turn it is; with `steps` false gradients only gather."""
        alone = len(self.players) == 1
        for name, loss, metrics in self.task.losses(self.networks, self.shadows, batch, self.step):
            player = self.players[name]
            if self.watches_every_loss and not math.isfinite(loss.item()):
                self._refuse_loss(name, self.step)
            self._backward(player, loss * weight if weight != 1.0 else loss)
            if steps:
                self._move(player)
            self.meter.add("loss" if alone else f"{name}_loss", loss.detach())
            for key, value in metrics.items():
                self.meter.add(key, value)

    def _backward(self, player: Player, loss: torch.Tensor) -> None:
        # With several players the gradient stops at the one whose turn it is; alone there is nobody to spare.
        inputs = player.parameters if len(self.players) > 1 else None
        if self.is_plain:
            loss.backward(inputs=inputs)
        else:
            self.accelerator.backward(loss, inputs=inputs)

    def _move(self, player: Player) -> None:
        limit = self.arguments.max_grad_norm
        if self.is_plain:
            if limit is not None:
                nn.utils.clip_grad_norm_(player.parameters, limit)
            optimizer = bare_optimizer(player.optimizer)
        else:
            if limit is not None:
                self.accelerator.clip_grad_norm_(player.parameters, limit)
            optimizer = player.optimizer
        optimizer.step()
        optimizer.zero_grad()

    def _gradients_stay_local(self) -> contextlib.ExitStack:
        """Processes need not exchange the gradients of a micro-batch that is not the last."""
        stack = contextlib.ExitStack()
        for player in self.players.values():
            stack.enter_context(self.accelerator.no_sync(player.network))
        return stack

    def _to_device(self, batch: Batch) -> Batch:
        device = self.context.device
        if device.type == "cpu":
            return batch
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }

    # Looking at it

    def log(self) -> None:
        """Report the means since the last report to the run's record, the trackers and the screen."""
        self._refuse_bad_losses()
        metrics = {f"train/{name}": value for name, value in self.meter.means().items()}
        if not self.accelerator.is_main_process:
            return
        rates = {
            f"learning_rate/{name}" if len(self.optimizers) > 1 else "learning_rate": optimizer.param_groups[0]["lr"]
            for name, optimizer in self.optimizers.items()
        }
        speed = self.progress.report(self.step, metrics)
        self._record(metrics | rates | speed | {"epoch": self.task.epoch})

    def _record(self, values: dict[str, float]) -> None:
        self.run.log({"step": self.step, **values})
        if self.arguments.trackers:
            self.accelerator.log(values, step=self.step)

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """The task's metrics of `model` on a split, measured by the first process; training notices nothing of it."""
        metrics: dict[str, float] = {}
        if self.accelerator.is_main_process:
            was_training = model.training
            with forked_randomness(self.arguments.seed, 2), torch.no_grad():
                metrics = self.task.evaluate(model.eval(), split, self.context)
            model.train(was_training)
        self.accelerator.wait_for_everyone()
        return metrics

    def published(self) -> nn.Module:
        """The model as others would get it now."""
        return self.task.published(self.model, self.shadows)

    def evaluate_and_keep_best(self) -> None:
        """Evaluate on the validation split, and keep these weights if no earlier ones were better."""
        self._refuse_bad_losses()
        model = self.published()
        metrics = self.evaluate(model, "validation")
        if self.accelerator.is_main_process and metrics:
            self._record({f"validation/{name}": value for name, value in metrics.items()})
            if self.task.best_metric not in metrics:
                raise UserError(
                    f"The task picks its best weights by '{self.task.best_metric}', but its validation reports only: "
                    f"{', '.join(metrics)}."
                )
            value = metrics[self.task.best_metric]
            self.progress.say(f"step {self.step}  validation {self.task.best_metric} {value:.4g}")
            if self._is_better(value):
                self.best = {"step": self.step, "value": value}
                write_folder(self.run.best, lambda folder: self.save_model(model, folder))
        self.progress.pause()

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return True
        return value > self.best["value"] if self.task.greater_is_better else value < self.best["value"]

    def _refuse_bad_losses(self) -> None:
        if self.watches_every_loss:
            return
        for name, index, count in self.meter.not_finite():
            player = next(iter(self.players)) if name == "loss" else name.removesuffix("_loss")
            self._refuse_loss(player, self.step - count + index)

    def _refuse_loss(self, name: str, step: int) -> None:
        newest = self.run.checkpoints.newest()
        rescue = f"The last good checkpoint is {newest}." if newest else "No checkpoint had been written yet."
        culprit = self._first_bad_tensor()
        raise UserError(
            f"The loss of '{name}' is not finite at step {step}; {culprit}. {rescue} "
            "Lower --learning_rate, set --max_grad_norm, or use --mixed_precision no or bf16."
        )

    def _first_bad_tensor(self) -> str:
        for name, network in self.bare_networks.items():
            for key, parameter in network.named_parameters():
                if not torch.isfinite(parameter).all():
                    return f"the first tensor of '{name}' that is not finite is its weight '{key}'"
                if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                    return f"the first tensor of '{name}' that is not finite is the gradient of '{key}'"
        return "all weights are still finite, so the forward pass or the batch made it"

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint: complete under its final name, or not at all."""
        self._refuse_bad_losses()
        store, first = self.run.checkpoints, self.accelerator.is_main_process
        try:
            if first:
                store.open(self.step)
            self.accelerator.wait_for_everyone()
            written = store.partial(self.step)
            (written / "state").mkdir(exist_ok=True)
            own = {"random": get_random_state(), "task": self.task.state_dict()}
            save_state(own, written / "state" / f"process-{self.context.rank:05d}")
            if first:
                self.save_model(self.model, written)
                save_state(self._shared_state(), written / "state" / "trainer")
            self.accelerator.wait_for_everyone()
            if first:
                store.commit(self.step)
        except (OSError, SafetensorError) as error:
            newest = store.newest()
            kept = f"The last complete one, {newest}, is untouched." if newest else "None had been written before."
            raise UserError(
                f"The checkpoint at step {self.step} could not be written to {store.folder}: {error}. {kept} "
                "Make room and go on with --resume auto."
            ) from error
        self.accelerator.wait_for_everyone()
        self.progress.pause()

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write a model and its processor as `from_pretrained` reads them."""
        with _without_progress_bars():
            model.save_pretrained(folder)
            if self.processor is not None:
                self.processor.save_pretrained(folder)

    def _shared_state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "world_size": self.context.world_size,
            "threads": torch.get_num_threads(),
            "optimizers": {name: bare_optimizer(opt).state_dict() for name, opt in self.optimizers.items()},
            "shadows": {name: shadow.state_dict() for name, shadow in self.shadows.items()},
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def restore(self, checkpoint: Path) -> None:
        """Continue from a checkpoint as if the run had never stopped."""
        shared = load_state(checkpoint / "state" / "trainer")
        if shared["world_size"] != self.context.world_size:
            raise UserError(
                f"{checkpoint} was written by {shared['world_size']} process(es), and this run has "
                f"{self.context.world_size}: each holds its own part of the data. Start as many as before."
            )
        own = load_state(checkpoint / "state" / f"process-{self.context.rank:05d}")
        try:
            load_model(self.model, checkpoint / "model.safetensors")
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"The weights in {checkpoint} cannot be loaded ({error}). Resume from an older one."
            ) from error
        for name, state in shared["optimizers"].items():
            restore_optimizer(bare_optimizer(self.optimizers[name]), state)
        for name, state in shared["shadows"].items():
            self.shadows[name].load_state_dict(state)
        if shared["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(shared["scaler"])
        self.step, self.best, self.seconds = shared["step"], shared["best"], shared["seconds"]
        self.task.load_state_dict(own["task"])
        set_random_state(own["random"])
        if self.accelerator.is_main_process:
            self.run.truncate_metrics(self.step)
            tqdm.write(f"Resuming from {checkpoint} at step {self.step}.", file=sys.stderr)
            if shared["threads"] != torch.get_num_threads():
                tqdm.write(
                    f"The run had {shared['threads']} threads and now has {torch.get_num_threads()}: sums come out in "
                    "another order, so its weights will agree only to rounding.",
                    file=sys.stderr,
                )

    def best_model(self) -> nn.Module | None:
        """The weights that validated best, if any did, in place of those of the last step."""
        if self.best is None or not self.run.best.is_dir():
            return None
        load_model(self.model, self.run.best / "model.safetensors")
        return self.model

    # Stopping

    def _agree_to_stop(self, interruption: Interruption) -> int | None:
        """The signal to stop for, if any process got one; asked rarely where processes must agree."""
        if self.context.world_size == 1:
            return interruption.requested
        if self.step % SYNC_STEPS and self.step != self.total_steps:
            return None
        report = torch.tensor([[interruption.requested or 0, self.task.epoch]], device=self.context.device)
        signals, epochs = self.accelerator.gather(report).T.tolist()
        if max(epochs) - min(epochs) > 1:
            raise UserError(
                f"The processes run out of step with the data: at step {self.step} they are in epochs {epochs}. Their "
                "shards hold different numbers of rows, so some rows would be seen more often than others. Publish the "
                "data set in shards of equal size, or use a number of processes that does not divide their count."
            )
        return max(signals) or None

    def _leave(self, signal_number: int) -> None:
        self.progress.close()
        self.end()
        name = signal.Signals(signal_number).name
        raise Interrupted(
            f"Stopped by {name} after step {self.step} of {self.total_steps}; everything is in "
            f"{self.run.checkpoints.newest()}. Go on with the same command and --resume auto.",
            signal_number,
        )

    def end(self, more_follow: bool = False) -> None:
        """Close the trackers and, unless more runs follow in this process, let go of the others, all at the same time."""
        # Without the wait, two processes now and then hang in the teardown.
        self.accelerator.wait_for_everyone()
        if not more_follow:
            self.accelerator.end_training()
            return
        for tracker in self.accelerator.trackers:
            tracker.finish()


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser, each average in the memory layout of its weight, which no file keeps.

    Fused optimisers walk through a weight and its averages side by side as they lie in memory: in another layout
    (`channels_last`), a weight would be moved by the averages of its neighbours.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def bare_optimizer(optimizer: Any) -> Optimizer:
    """The torch optimiser inside Accelerate's wrapper."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers draws a bar for each file it writes; between the lines of a training they are noise."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
