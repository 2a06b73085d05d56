"""FLOPs of a step by the closed formula, for models of ours and of others; counting leaves no trace."""

import pytest
import torch
from torch import nn

from lab.flops import flops_per_step, measured_matmul_peak
from lab.language_model import LanguageModel
from lab.presets import preset


def by_formula(config, rows: int, length: int) -> int:
    """2 for a multiply-add, and twice the forward pass for the backward one: 6 a weight of a matmul and token; and for
    Q K^T and for the weights times V, each 6 T D a token."""
    body = config.num_layers * (4 * config.d_model**2 + 2 * config.d_model * config.d_ff)
    tokens = rows * length
    head = config.vocab_size * config.d_model
    return 6 * tokens * (body + head) + config.num_layers * 12 * tokens * length * config.d_model


@pytest.mark.parametrize("chunk", [None, 100])
@pytest.mark.parametrize("size", ["16m", "tiny"])
def test_flops_of_our_model(size, chunk):
    config = preset(size, loss_chunk=chunk)
    model, ids = LanguageModel(config), torch.randint(config.vocab_size, (2, 32))
    assert flops_per_step(model, {"input_ids": ids, "labels": ids}) == by_formula(config, 2, 32)


def test_flops_of_hugging_faces():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = preset("tiny")
    shape = {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 64, "vocab_size": 512}
    special = {"bos_token_id": None, "eos_token_id": None}
    model, ids = GPT2LMHeadModel(GPT2Config(**shape, **special)), torch.randint(512, (2, 32))
    assert flops_per_step(model, {"input_ids": ids, "labels": ids}) == by_formula(config, 2, 32)


class Meddling(nn.Module):
    """Draws numbers and moves a buffer, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x + torch.randn_like(x))


def test_counting_leaves_no_trace():
    model, x = Meddling(), torch.randn(7, 3)
    model.linear.eval()
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    assert flops_per_step(model, {"x": x}) == 6 * 7 * 3 * 5
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert model.calls == 0 and model.linear.weight.grad is None


def test_the_peak_is_a_rate_and_draws_nothing():
    state = torch.get_rng_state()
    peak = measured_matmul_peak("cpu", torch.float32, seconds=0.01)
    assert 1e8 < peak < 1e15
    assert torch.equal(torch.get_rng_state(), state)
