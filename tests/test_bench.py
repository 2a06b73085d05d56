"""The benchmark compares like with like, says what it left out, and its ratios are those of its samples."""

import json
import statistics

import pytest
import torch

from lab import bench
from lab.bench import run
from lab.config import ModelConfig
from lab.contenders import make
from lab.memory import extra_memory

CONFIG = ModelConfig(97, d_model=32, num_heads=4, num_layers=2, d_ff=128, max_seq_len=40)

NANOGPT = '''
"""Stands in for a checkout: the names that nanoGPT gives its parts, over torch's own."""
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class GPTConfig:
    block_size: int = 1
    vocab_size: int = 1
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 1
    dropout: float = 0.0

class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.n_head, d = c.n_head, c.n_embd
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(d, 3 * d), "c_proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(d, 4 * d), "c_proj": nn.Linear(4 * d, d)})

    def forward(self, x):
        both = self.attn.c_attn(self.ln_1(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in both)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn.c_proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp.c_proj(nn.functional.gelu(self.mlp.c_fc(self.ln_2(x))))

class GPT(nn.Module):
    def __init__(self, c):
        super().__init__()
        print("number of parameters: many")
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(c.vocab_size, c.n_embd), "wpe": nn.Embedding(c.block_size, c.n_embd),
            "h": nn.ModuleList(Block(c) for _ in range(c.n_layer)), "ln_f": nn.LayerNorm(c.n_embd),
        })

    def configure_optimizers(self, decay, rate, betas, device):
        return torch.optim.AdamW(self.parameters(), lr=rate, betas=betas, weight_decay=decay)

    def forward(self, x, targets):
        h = self.transformer.wte(x) + self.transformer.wpe(torch.arange(x.size(1)))
        for block in self.transformer.h:
            h = block(h)
        logits = self.transformer.ln_f(h) @ self.transformer.wte.weight.T
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nanogpt")
    (folder / "model.py").write_text(NANOGPT, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def result(checkout, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "deep" / "bench.json"
    how = {"nanogpt": checkout, "precision": "fp32", "repeats": 2, "tokens": 80, "modes": ("eager",)}
    made = run(("small",), configs={"small": CONFIG}, json_path=path, **how)
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(made))
    return made


def test_all_contenders_compute_the_same_loss(result):
    losses = result["presets"]["small"]["training"][0]["first_loss"]
    assert set(losses) == {"lab", "lab, chunked loss", "transformers", "nanoGPT"}
    assert all(loss == pytest.approx(losses["lab"], rel=1e-4) for loss in losses.values())
    assert losses["transformers"] == pytest.approx(losses["lab"], rel=1e-6)
    largest = max(abs(loss - losses["lab"]) for loss in losses.values())
    assert result["presets"]["small"]["training"][0]["loss_difference"] == largest


def test_other_weights_give_another_loss():
    ids = torch.arange(40)[None]
    one, two = (make("transformers", CONFIG, None, "cpu") for _ in range(2))
    with torch.no_grad():
        for parameter in two.model.transformer.h[1].mlp.parameters():
            parameter += 0.1
    assert one.loss(one.model, ids, ids).item() != pytest.approx(two.loss(two.model, ids, ids).item(), rel=1e-4)


def test_ratios_are_those_of_the_medians_of_the_samples(result):
    row = result["presets"]["small"]["training"][0]
    medians = {name: statistics.median(seconds) for name, seconds in row["seconds"].items()}
    assert all(len(seconds) == 2 for seconds in row["seconds"].values())
    for theirs in ("transformers", "nanoGPT"):
        assert row["ratio"][f"lab / {theirs}"] == pytest.approx(medians[theirs] / medians["lab"])
    assert row["tokens_per_second"]["lab"] == pytest.approx(80 / medians["lab"])
    assert row["fraction_of_peak"]["lab"] == pytest.approx(row["flops_per_step"] / medians["lab"] / row["matmul_peak"])


def test_generation_is_compared_token_for_token(result):
    row = result["presets"]["small"]["generation"]
    assert row["same_tokens"] == {"lab, without a cache": True, "transformers": True}


def test_what_ran_is_named(result):
    assert "GPT2LMHeadModel" in result["code"]["transformers"] and "nanoGPT" in result["code"]["nanoGPT"]
    assert result["machine"]["torch"] == torch.__version__ and not result["missing"]


def test_a_peer_that_is_not_there_is_left_out_and_said_so(monkeypatch, capsys):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name))
    how = {"precision": "fp32", "repeats": 1, "tokens": 40, "modes": ("eager",), "configs": {"small": CONFIG}}
    made = run(("small",), **how)
    assert set(made["missing"]) == {"transformers", "nanoGPT"}
    assert set(made["presets"]["small"]["training"][0]["seconds"]) == {"lab", "lab, chunked loss"}
    assert "transformers is left out: the package is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(("device_has_bf16", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_precision_is_what_the_device_is_fast_in(device_has_bf16, chosen, monkeypatch, capsys):
    fast = torch.bfloat16 if device_has_bf16 else torch.float32
    monkeypatch.setattr(bench, "fast_type", lambda device, dtype: fast)
    for asked, got in (("auto", chosen), ("bf16", "bf16"), ("fp32", "fp32")):
        assert bench.chosen(asked, torch.device("cpu")) == got
        assert ("emulated" in capsys.readouterr().out) is (got == "bf16" and not device_has_bf16)


def test_what_does_not_fit_in_memory_is_tried_with_half(monkeypatch):
    tried = []

    def turns(config, batch, *rest):
        tried.append(tuple(batch["input_ids"].shape))
        if len(tried) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {}

    monkeypatch.setattr(bench, "taking_turns", turns)
    bench.training(CONFIG, [], None, "eager", "fp32", "cpu", 1, 320)
    assert tried == [(8, 40), (4, 40), (2, 40)]
    tried[:] = []
    with pytest.raises(torch.OutOfMemoryError):
        bench.training(CONFIG, [], None, "eager", "fp32", "cpu", 1, 40)


def test_extra_memory_counts_what_a_step_takes():
    """At least the logits, which the chunked loss does without."""
    config = ModelConfig(20_000, d_model=16, num_heads=2, num_layers=1, d_ff=64, max_seq_len=512)
    how = {"checkout": None, "mode": "eager", "precision": "fp32", "device": "cpu", "tokens": 4096}
    plain, chunked = (extra_memory(name, config, **how) for name in ("lab", "lab, chunked loss"))
    logits = 4096 * 20_000 * 4
    assert plain > logits
    assert chunked < plain - logits / 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"presets": ("17m",)}, "unknown preset '17m'.*16m"),
        ({"precision": "fp8"}, "unknown precision 'fp8'.*bf16"),
        ({"modes": ("fast",)}, "unknown mode 'fast'.*eager, compiled"),
        ({"repeats": 0}, "repeats is 0"),
        ({"device": "cuda:9"}, "device 'cuda:9' is not there"),
    ],
)
def test_bad_input_is_named(how, message):
    with pytest.raises(ValueError, match=message):
        run(**how)


def test_what_is_no_checkout_is_refused(tmp_path, checkout):
    with pytest.raises(ValueError, match="is no checkout of nanoGPT"):
        make("nanoGPT", CONFIG, tmp_path, "cpu")
    with pytest.raises(ValueError, match="d_ff = 4 x d_model"):
        make("nanoGPT", CONFIG.replace(d_ff=64), checkout, "cpu")
