"""The loop: who moves when, what is kept, and how it stops."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_papers.errors import UserError
from hf_papers.training import run as run_module
from hf_papers.training import trainer as trainer_module
from hf_papers.training.checkpoint import CheckpointStore, publish_folder
from hf_papers.training.finish import finish
from hf_papers.training.interruption import Interrupted
from hf_papers.training.randomness import forked_randomness
from hf_papers.training.run import Run
from hf_papers.training.shadow import Shadow
from hf_papers.training.state import load_state
from hf_papers.training.task import Context
from tests.training.toy import ToyTask, toy_recipe, toy_trainer, train_toy


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_one_player_follows_the_plain_pytorch_loop_bit_for_bit(tmp_path):
    trainer = toy_trainer(tmp_path, optimizer="adamw", weight_decay=0.1, max_grad_norm=0.5, dropout=0.0)
    twin = ToyTask(trainer.task.recipe).build_model()
    twin.load_state_dict(trainer.model.state_dict())
    matrices = [value for value in twin.parameters() if value.ndim > 1]
    vectors = [value for value in twin.parameters() if value.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=1e-3, fused=True
    )
    batches = ToyTask(trainer.task.recipe).batches({}, Context(torch.device("cpu"), 0, 1, 0))
    for _ in range(60):
        points = next(batches)["points"]
        (twin(points) - points.sum(1, keepdim=True)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    trainer.train()
    assert same(weights(trainer), twin.state_dict())


@pytest.mark.parametrize("micro, count", [(32, 2), (16, 4)])
def test_accumulation_equals_the_larger_batch(tmp_path, micro, count):
    whole = train_toy(tmp_path / "whole", per_device_train_batch_size=64, dropout=0.0, optimizer="sgd", max_steps=10)
    parts = toy_trainer(
        tmp_path / "parts",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=count,
        dropout=0.0,
        optimizer="sgd",
        max_steps=10,
    )
    # The generator draws row after row, so that `count` small batches hold the rows of a large one.
    parts.train()
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(parts)[name], atol=1e-6), name


def test_a_players_turn_leaves_the_others_gradients_alone(tmp_path):
    trainer = toy_trainer(tmp_path, players=2)
    batch = next(trainer.task.batches(trainer.networks, trainer.context))
    turns = trainer.task.losses(trainer.networks, trainer.shadows, batch, 0)
    name, loss, _ = next(turns)
    trainer._backward(trainer.players[name], loss)
    assert name == "line"
    assert all(value.grad is not None for value in trainer.model.line.parameters())
    assert all(value.grad is None for value in trainer.model.rival.parameters())


def test_the_second_player_meets_the_first_after_its_step(tmp_path):
    trainer = toy_trainer(tmp_path, players=2, max_steps=1)
    before = weights(trainer)
    seen = {}
    original = trainer._backward

    def spy(player, loss):
        if player is trainer.players["rival"]:
            seen.update(weights(trainer))
        original(player, loss)

    trainer._backward = spy
    trainer.train()
    assert not torch.equal(before["line.0.weight"], seen["line.0.weight"])
    assert torch.equal(before["rival.weight"], seen["rival.weight"])
    assert not torch.equal(before["rival.weight"], weights(trainer)["rival.weight"])


@pytest.mark.parametrize("players", [1, 2])
def test_a_resumed_run_ends_bit_identical(tmp_path, players):
    whole = train_toy(tmp_path / "a", players=players, save_total_limit=3)
    assert [path.name for path in whole.run.checkpoints.complete()] == [
        "checkpoint-00000020",
        "checkpoint-00000040",
        "checkpoint-00000060",
    ]
    torch.randn(100)  # whatever the process drew before must not matter
    part = train_toy(tmp_path / "b", players=players, resume=whole.run.checkpoints.complete()[0])
    assert part.step == 60 and same(weights(whole), weights(part))
    for name in whole.shadows:
        assert same(whole.shadows[name].state_dict(), part.shadows[name].state_dict())
    assert whole.best == part.best
    # A second generation: resumed from a checkpoint that a resumed run wrote.
    third = train_toy(tmp_path / "c", players=players, resume=part.run.checkpoints.complete()[0])
    assert same(weights(whole), weights(third))


def test_evaluating_more_often_does_not_change_the_training(tmp_path):
    rarely = train_toy(tmp_path / "a", eval_steps=60)
    often = train_toy(tmp_path / "b", eval_steps=5)
    assert same(weights(rarely), weights(often))


def test_the_random_sources_are_as_before_after_a_fork():
    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    with forked_randomness(1, 2):
        torch.randn(17)
    assert torch.equal(torch.randn(3), expected)


def test_the_best_weights_are_kept_and_are_those_that_were_measured(tmp_path):
    trainer = train_toy(tmp_path, learning_rate=0.5, optimizer="sgd", max_steps=100, eval_steps=10)
    lines = [json.loads(line) for line in trainer.run.metrics_file.read_text().splitlines()]
    measured = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
    assert len(measured) == 10
    best = min(measured, key=measured.get)
    assert trainer.best == {"step": best, "value": measured[best]}
    last = weights(trainer)
    model = trainer.best_model()
    assert trainer.evaluate(model, "validation")["loss"] == measured[best]
    assert not same(last, model.state_dict())


def test_metrics_written_after_the_checkpoint_are_written_once(tmp_path):
    trainer = train_toy(tmp_path, save_total_limit=3)
    before = [json.loads(line)["step"] for line in trainer.run.metrics_file.read_text().splitlines()]
    with trainer.run.metrics_file.open("a") as file:
        file.write('{"step": 61, "train/lo')  # cut short by a crash
    train_toy(tmp_path, save_total_limit=3, resume=trainer.run.checkpoints.complete()[0])
    after = [json.loads(line)["step"] for line in trainer.run.metrics_file.read_text().splitlines()]
    assert before == after


def test_a_warm_shadow_forgets_the_start():
    network = torch.nn.Linear(1, 1, bias=False)
    cold, warm = Shadow(0.99), Shadow(0.99, warm=True)
    copies = [rule.copy_of(network) for rule in (cold, warm)]
    with torch.no_grad():
        for copy in copies:
            copy.weight.fill_(1000.0)  # the random start
        network.weight.fill_(1.0)
    for step in range(1, 31):
        for rule, copy in zip((cold, warm), copies, strict=True):
            rule.follow(copy, network, step)
    assert copies[0].weight.item() > 700 and copies[1].weight.item() < 1.01
    with torch.no_grad():
        network.weight.fill_(2.0)
    before = copies[1].weight.item()
    warm.follow(copies[1], network, 10_000_000)  # late, its decay is the one it was given
    assert copies[1].weight.item() == pytest.approx(0.99 * before + 0.01 * 2.0)


def test_a_shadow_is_the_running_average(tmp_path):
    trainer = toy_trainer(tmp_path, shadow_decay=0.5, max_steps=3)
    history = [trainer.model.line[0].weight.detach().clone()]
    original = trainer.update

    def spy(batches):
        original(batches)
        history.append(trainer.model.line[0].weight.detach().clone())

    trainer.update = spy
    trainer.train()
    expected = history[0]
    for value in history[1:]:
        expected = 0.5 * expected + 0.5 * value
    assert torch.allclose(trainer.shadows["model"].line[0].weight, expected, atol=1e-7)


def test_averaged_weights_are_what_is_measured_and_published_where_the_task_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyTask, "published", lambda self, model, shadows: shadows["model"])
    trainer = train_toy(tmp_path, shadow_decay=0.99, max_steps=20)
    best = load_file(trainer.run.best / "model.safetensors")
    assert same(best, trainer.shadows["model"].state_dict()) and not same(best, weights(trainer))
    checkpoint = load_file(trainer.run.checkpoints.newest() / "model.safetensors")
    assert same(checkpoint, weights(trainer))  # training goes on from the raw ones
    assert trainer.best["value"] == trainer.evaluate(trainer.shadows["model"], "validation")["loss"]


def test_a_nan_names_step_network_and_checkpoint(tmp_path):
    trainer = toy_trainer(tmp_path, poison_step=33)
    with pytest.raises(UserError, match=r"loss of 'model' is not finite at step 33.*checkpoint-00000020"):
        trainer.train()
    saved = load_file(trainer.run.checkpoints.newest() / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())


def test_on_an_accelerator_the_nan_is_found_when_losses_are_looked_at(tmp_path):
    trainer = toy_trainer(tmp_path, poison_step=33, logging_steps=10)
    trainer.watches_every_loss = False
    with pytest.raises(UserError, match=r"loss of 'model' is not finite at step 33.*weight 'line.0.weight'"):
        trainer.train()
    assert trainer.run.checkpoints.newest().name == "checkpoint-00000020"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_a_resumed_run_goes_on(tmp_path, number):
    handler = signal.getsignal(number)  # a shell's background job has Ctrl-C ignored
    whole = train_toy(tmp_path / "a")
    stopped = toy_trainer(tmp_path / "b")
    original = stopped.update

    def spy(batches):
        original(batches)
        if stopped.step == 31:
            os.kill(os.getpid(), number)

    stopped.update = spy
    with pytest.raises(Interrupted, match=f"{number.name} after step 32 of 60.*--resume auto") as caught:
        stopped.train()
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == handler
    assert same(weights(whole), weights(train_toy(tmp_path / "b", resume="auto")))


def test_resume_auto_starts_where_nothing_is(tmp_path):
    assert train_toy(tmp_path, resume="auto").step == 60


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty.*--resume auto.*--overwrite_output_dir"):
        toy_trainer(tmp_path)
    with pytest.raises(UserError, match="not written by a run"):
        toy_trainer(tmp_path, overwrite_output_dir=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_starts_anew(tmp_path):
    train_toy(tmp_path)
    assert toy_trainer(tmp_path, overwrite_output_dir=True).run.checkpoints.newest() is None


def test_resuming_with_another_recipe_is_refused_with_the_difference(tmp_path):
    train_toy(tmp_path)
    with pytest.raises(
        UserError, match="width: 8 in the run, 9 now; learning_rate: 0.001 in the run, 0.5 now"
    ) as caught:
        toy_trainer(tmp_path, resume="auto", learning_rate=0.5, width=9)
    assert "logging_steps" not in str(caught.value)
    toy_trainer(tmp_path, resume="auto", logging_steps=7)  # harmless


def test_resuming_with_another_number_of_processes_is_refused(tmp_path):
    trainer = train_toy(tmp_path)
    trainer.context = Context(torch.device("cpu"), 0, 2, 0)
    with pytest.raises(UserError, match="written by 1 process.*this run has 2"):
        trainer.restore(trainer.run.checkpoints.newest())


def test_the_number_of_processes_is_what_was_started(tmp_path):
    with pytest.raises(UserError, match="--num_processes 2 was asked for, and 1 process"):
        toy_trainer(tmp_path, num_processes=2)
    assert not (tmp_path / "recipe.yaml").exists()
    toy_trainer(tmp_path, num_processes=1)
    toy_trainer(tmp_path, resume="auto")  # one is what it is without the option


def test_a_wrong_resume_path_is_refused(tmp_path):
    train_toy(tmp_path)
    with pytest.raises(UserError, match="no complete checkpoint.*The newest here is"):
        toy_trainer(tmp_path, resume=tmp_path / "checkpoints" / "checkpoint-00000030")


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path)
    original = trainer_module.save_state

    def full(state, stem):
        if "checkpoint-00000040" in str(stem):
            raise OSError(28, "No space left on device")
        original(state, stem)

    monkeypatch.setattr(trainer_module, "save_state", full)
    with pytest.raises(
        UserError, match="step 40 could not be written.*No space left.*checkpoint-00000020, is untouched"
    ):
        trainer.train()
    monkeypatch.undo()
    whole = train_toy(tmp_path / "whole")
    assert same(weights(whole), weights(train_toy(tmp_path, resume="auto")))


def test_a_crash_while_writing_leaves_the_last_complete_one(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 3):
        store.open(step)
        (store.partial(step) / "file").write_text(str(step))
        store.commit(step)
    store.open(4)
    (store.partial(4) / "file").write_text("half")
    assert [path.name for path in store.complete()] == ["checkpoint-00000002", "checkpoint-00000003"]
    store.open(5)  # the next one clears the leftovers
    assert not store.partial(4).exists()


def test_publishing_a_folder_replaces_the_old_one_whole(tmp_path):
    for text in ("old", "new"):
        written = tmp_path / "written"
        written.mkdir()
        (written / text).write_text(text)
        publish_folder(written, tmp_path / "final")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final"]


def test_checkpoints_hold_no_pickle(tmp_path):
    trainer = train_toy(tmp_path, players=2)
    files = [path for path in Path(trainer.run.folder).rglob("*") if path.is_file()]
    assert files and {path.suffix for path in files} <= {".safetensors", ".json", ".jsonl", ".yaml"}
    state = load_state(trainer.run.checkpoints.newest() / "state" / "trainer")
    assert state["step"] == 60 and set(state["optimizers"]) == {"line", "rival"}


def test_an_unknown_tracker_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="--report_to tensorbord"):
        toy_trainer(tmp_path / "run", report_to="tensorbord")
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_written_where_asked_for(tmp_path):
    trainer = train_toy(tmp_path, report_to="tensorboard")
    trainer.end()
    assert list(trainer.run.logs.rglob("events.out.tfevents.*"))


def test_bf16_trains(tmp_path):
    first, *_, last = [
        json.loads(line)["train/loss"]
        for line in train_toy(tmp_path, mixed_precision="bf16", learning_rate=0.03)
        .run.metrics_file.read_text()
        .splitlines()
        if "train/loss" in line
    ]
    assert last < 0.5 * first


def test_fp16_on_the_cpu_is_refused_because_it_would_silently_be_float32(tmp_path):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        toy_trainer(tmp_path, mixed_precision="fp16")


def test_runs_write_their_recipe(tmp_path):
    trainer = train_toy(tmp_path, width=5)
    from hf_papers.training.recipe import load_run_recipe

    assert load_run_recipe(trainer.run.folder).to_dict() == toy_recipe(tmp_path, width=5).to_dict()
    assert isinstance(trainer.run, Run)


def test_results_name_the_commit_that_the_run_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "current_commit", lambda: "at the start")
    trainer = toy_trainer(tmp_path)
    monkeypatch.setattr(run_module, "current_commit", lambda: "somebody's later commit")
    trainer.train()
    finish(trainer)
    assert json.loads((tmp_path / "results.json").read_text())["commit"] == "at the start"
