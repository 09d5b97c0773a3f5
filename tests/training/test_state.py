"""Checkpoint state survives the disk exactly, and cannot be anything that runs code."""

import random

import numpy as np
import pytest
import torch

from hf_papers.errors import UserError
from hf_papers.training.state import load_state, save_state
from hf_papers.training.trainer import restore_optimizer


def test_every_kind_of_value_comes_back_as_it_was(tmp_path):
    random.seed(1)
    state = {
        "plain": [1, 2.5, "text", None, True, 2**200],
        "tuple": (1, (2, "three")),
        0: {"integer keys": torch.arange(6).reshape(2, 3)},
        "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
        "scalar": torch.tensor(3),
        "array": np.arange(5, dtype=np.uint32)[::2],
        "nothing": np.zeros((0, 3), dtype=np.float64),
        "zero-dimensional": np.array(7.0),
        "bytes": b"\x00\xff",
        "no bytes": b"",
        "python": random.getstate(),
    }
    save_state(state, tmp_path / "state")
    loaded = load_state(tmp_path / "state")
    assert loaded["plain"] == state["plain"] and loaded["tuple"] == state["tuple"]
    assert torch.equal(loaded[0]["integer keys"], state[0]["integer keys"])
    assert loaded["half"].dtype == torch.bfloat16 and loaded["half"][1].isnan()
    assert loaded["scalar"].shape == ()
    for key in ("array", "nothing", "zero-dimensional"):
        assert loaded[key].dtype == state[key].dtype and np.array_equal(loaded[key], state[key])
        assert loaded[key].shape == state[key].shape
    assert loaded["bytes"] == b"\x00\xff" and loaded["no bytes"] == b""
    random.random()
    random.setstate(loaded["python"])  # raises unless the nested tuples are tuples again
    assert random.getstate() == state["python"]


def test_shared_memory_is_stored_twice_and_not_refused(tmp_path):
    values = torch.arange(4.0)
    save_state({"a": values, "b": values[:2]}, tmp_path / "state")
    assert torch.equal(load_state(tmp_path / "state")["b"], values[:2])


def test_an_optimiser_resumes_from_the_disk(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.sum().backward()
    optimizer.step()
    save_state(optimizer.state_dict(), tmp_path / "state")
    twin = torch.nn.Parameter(weight.detach().clone())
    again = torch.optim.AdamW([twin], fused=True)
    again.load_state_dict(load_state(tmp_path / "state"))
    for parameter, optim in ((weight, optimizer), (twin, again)):
        parameter.grad = torch.tensor([1.0, -2.0, 0.5])
        optim.step()
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_optimiser_resumes_with_weights_of_any_memory_layout(tmp_path, layout):
    """A fused optimiser moved each weight by the averages of another one: files keep no layout."""
    gradients = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(torch.ones(4, 3, 5, 5).to(memory_format=layout))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = gradients[0].to(memory_format=layout)
    optimizer.step()
    save_state(optimizer.state_dict(), tmp_path / "state")
    twin = torch.nn.Parameter(weight.detach().clone())
    again = torch.optim.AdamW([twin], fused=True)
    restore_optimizer(again, load_state(tmp_path / "state"))
    for parameter, optim in ((weight, optimizer), (twin, again)):
        parameter.grad = gradients[1].to(memory_format=layout)
        optim.step()
    assert torch.equal(weight, twin)


@pytest.mark.parametrize("value", [object(), lambda: None, {1, 2}, np.array([object()])])
def test_what_only_a_pickle_could_hold_is_refused(tmp_path, value):
    with pytest.raises(TypeError, match="'/bad'"):
        save_state({"bad": value}, tmp_path / "state")


def test_a_damaged_file_ends_in_a_sentence(tmp_path):
    save_state({"a": torch.ones(100)}, tmp_path / "state")
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="cannot be read.*older checkpoint"):
        load_state(tmp_path / "state")
