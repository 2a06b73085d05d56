"""The checks on weights and siblings, on models that nobody here wrote: silent on designs, loud on what is odd."""

import pytest
import torch
from foreign import PAD, TorchTransformer, hugging_face, pairs_batch
from torch import nn

import lab
from lab.subject import Subject

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, PAD, PAD]])
CHECKS = ["dead-weights", "odd-one-out", "head-independence"]


def asked(model, *names, batch=None):
    report = lab.diagnose(Subject(model, {"input_ids": IDS} if batch is None else batch), only=names or CHECKS)
    assert not report.errors, report.errors
    return report


def gpt2(layers=3, **options):
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "n_positions": 40, "n_embd": 32, "n_layer": layers, "n_head": 4}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **options))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart", "t5"])
def test_silent_on_hugging_face(kind):
    pairs = pairs_batch()
    translator = {"input_ids": pairs["src"], "decoder_input_ids": pairs["tgt"]}
    report = asked(hugging_face(kind), batch=translator if kind in ("bart", "t5") else None)
    assert sorted(report.passed) == sorted(CHECKS) and not report.notes, report.text()


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_first", [False, True])
def test_silent_on_torch_transformer(norm_first):
    torch.manual_seed(0)
    report = asked(TorchTransformer(norm_first=norm_first), batch=pairs_batch())
    assert sorted(report.passed) == sorted(CHECKS) and not report.notes, report.text()


@torch.no_grad()
def changed(model, name, change):
    change(model.get_parameter(name))
    return model


def test_a_projection_that_is_zero_in_one_layer():
    model = changed(gpt2(), "transformer.h.1.attn.c_proj.weight", lambda p: p.zero_())
    (finding,) = asked(model, "dead-weights").findings
    assert finding.severity == "P2" and "transformer.h.1.attn.c_proj.weight is all zero" in finding.message
    assert finding.evidence["gradient reaches it"] == "yes" and "GPT2Attention" in finding.where.symbol


def test_a_projection_that_nothing_will_wake():
    model = changed(gpt2(), "transformer.h.1.mlp.c_proj.weight", lambda p: p.zero_())
    changed(model, "transformer.h.1.mlp.c_fc.weight", lambda p: p.zero_())
    severities = {finding.severity for finding in asked(model, "dead-weights").findings}
    assert severities == {"P1"}


def test_zero_in_every_layer_is_a_design():
    model = gpt2()
    for layer in range(3):
        changed(model, f"transformer.h.{layer}.attn.c_proj.weight", lambda p: p.zero_())
    assert asked(model, "dead-weights").passed


def test_one_number_throughout():
    model = changed(gpt2(), "transformer.h.2.mlp.c_fc.weight", lambda p: p.fill_(0.02))
    (finding,) = asked(model, "dead-weights").findings
    assert "one number throughout" in finding.message


def test_a_gain_of_zero_and_a_bias_of_zero():
    model = changed(gpt2(), "transformer.h.2.ln_1.weight", lambda p: p.zero_())
    for layer in (0, 1):
        changed(model, f"transformer.h.{layer}.ln_2.bias", lambda p: p.normal_())
    (finding,) = asked(model, "dead-weights").findings
    assert finding.message.startswith("transformer.h.2.ln_1.weight is all zero")


def test_a_head_that_is_zero():
    """GPT-2's fused matrix is (inputs, queries + keys + values): the heads are columns."""

    def drop(p):
        p.view(32, 3, 4, 8)[:, :, 2] = 0

    (finding,) = asked(changed(gpt2(), "transformer.h.0.attn.c_attn.weight", drop), "dead-weights").findings
    assert "is zero for head 2" in finding.message and finding.evidence["zero columns"] == 24


def test_neurons_that_are_zero():
    def drop(p):
        p[:, 5:8] = 0

    (finding,) = asked(changed(gpt2(), "transformer.h.0.mlp.c_fc.weight", drop), "dead-weights").findings
    assert "has 3 of 128 columns all zero" in finding.message


def test_embedding_rows_count_where_the_batch_reads_them():
    model = gpt2()
    changed(model, "transformer.wte.weight", lambda p: p[50:].zero_())
    assert asked(model, "dead-weights").passed  # nobody reads them: a vocabulary that was rounded up
    changed(model, "transformer.wte.weight", lambda p: p[6:8].zero_())
    (finding,) = asked(model, "dead-weights").findings
    assert "tokens of your batch, 6, 7" in finding.message


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda h: setattr(h[1].ln_2, "eps", 1e-3), "eps 0.001"),
        (
            lambda h: setattr(h[2].resid_dropout if hasattr(h[2], "resid_dropout") else h[2].mlp.dropout, "p", 0.5),
            "0.5",
        ),
        (lambda h: setattr(h[1].mlp, "act", nn.ReLU()), "the activation ReLU"),
    ],
    ids=["epsilon", "dropout", "activation"],
)
def test_a_setting_of_one_layer(break_it, words):
    model = gpt2()
    break_it(model.transformer.h)
    if "activation" in words:
        for layer in (0, 2):
            model.transformer.h[layer].mlp.act = nn.GELU()
    (finding,) = asked(model, "odd-one-out").findings
    assert finding.severity == "P3" and words in finding.message and finding.message.startswith("transformer.h.")


def test_patterns_and_trends_are_designs():
    model = gpt2(layers=6)
    for number, block in enumerate(model.transformer.h):
        block.ln_1.eps = (1e-5, 1e-6)[number % 2]  # every second layer
        block.mlp.dropout.p = 0.1 * number  # stochastic depth
        block.attn.layer_idx = number
        with torch.no_grad():
            block.mlp.c_proj.weight.mul_((number + 1) ** -0.5)
    assert asked(model, "odd-one-out").passed


def test_an_odd_scale_at_the_start_and_in_a_trained_model():
    model = changed(gpt2(layers=4), "transformer.h.1.mlp.c_fc.weight", lambda p: p.mul_(5))
    (finding,) = asked(model, "odd-one-out").findings
    assert (
        "transformer.h.1.mlp.c_fc.weight starts with a standard deviation of 0.0998, and its siblings with 0.02"
        in finding.message
    )
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            changed(model, name, lambda p: p.add_(torch.randn_like(p) * 0.01))  # as training leaves gains and biases
    assert asked(model, "odd-one-out").passed


def test_an_odd_gain():
    model = changed(gpt2(), "transformer.h.1.ln_1.weight", lambda p: p.fill_(0.1))
    (finding,) = asked(model, "odd-one-out").findings
    assert "transformer.h.1.ln_1.weight starts with a value of 0.1" in finding.message


def test_activations_within_one_layer_are_no_siblings():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(60, 16)
            block = [nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.3)]
            self.blocks = nn.Sequential(*block)
            self.head = nn.Linear(16, 60)

        def forward(self, input_ids):
            return self.head(self.blocks(self.table(input_ids)))

    report = asked(Net(), "odd-one-out", "dead-weights")
    assert not report.findings and "sibling" in report.skipped["odd-one-out"], report.text()


def test_heads_that_are_copies():
    def copy(p):
        p.view(32, 3, 4, 8)[:, :, 3] = p.view(32, 3, 4, 8)[:, :, 1]

    (finding,) = asked(changed(gpt2(), "transformer.h.2.attn.c_attn.weight", copy), "head-independence").findings
    assert "heads 1 and 3 of transformer.h.2.attn are copies" in finding.message and finding.severity == "P2"


def test_heads_of_torch_that_are_copies():
    torch.manual_seed(0)
    model = TorchTransformer()
    with torch.no_grad():
        weight = model.transformer.decoder.layers[1].self_attn.in_proj_weight.view(3, 2, 8, 16)
        weight[:, 1] = weight[:, 0]
    (finding,) = asked(model, "head-independence", batch=pairs_batch()).findings
    assert "transformer.decoder.layers.1.self_attn" in finding.message


def test_all_heads_of_all_layers_that_are_copies():
    model = gpt2()
    for layer in range(3):
        changed(
            model,
            f"transformer.h.{layer}.attn.c_attn.weight",
            lambda p: p.view(32, 3, 4, 8).copy_(p.view(32, 3, 4, 8)[:, :, :1].clone().expand(-1, -1, 4, -1)),
        )
    assert len(asked(model, "head-independence").findings) == 3


def test_zero_queries_over_shared_keys_are_a_design():
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=1))
    for layer in range(2):
        changed(model, f"model.layers.{layer}.self_attn.q_proj.weight", lambda p: p.zero_())
    assert asked(model, "head-independence").passed


def test_a_model_without_heads_or_layers_is_a_skip():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(60, 16), nn.Linear(16, 60)

        def forward(self, input_ids):
            return self.head(self.table(input_ids))

    report = asked(Flat())
    assert sorted(report.skipped) == sorted(CHECKS) and not report.findings
