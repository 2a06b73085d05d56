"""Parameters of models that nobody here wrote: registered, reached by gradients, held by the optimizer, shared."""

import copy

import pytest
import torch
import torch.nn.functional as F
from foreign import VOCAB, NanoGPT, TorchTransformer, hugging_face, pairs_batch
from torch import nn

import lab
from lab.subject import Subject

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


class Toy(nn.Module):
    """Layers over an embedding; `wire` changes the model when it is made, `through` what runs between."""

    def __init__(self, wire=None, through=None):
        super().__init__()
        self.table, self.out = nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB, bias=False)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.through = through
        if wire is not None:
            wire(self)

    def forward(self, input_ids):
        x = self.table(input_ids)
        for layer in self.layers:
            x = x + layer(x.cumsum(1)).tanh()
        x = x if self.through is None else self.through(self, x)
        return self.out(x)


def asked(check, model, batch=None, **how):
    batch = {"input_ids": IDS} if batch is None else batch
    report = lab.diagnose(Subject(model, batch, **how), only=[check])
    assert not report.errors, report.errors
    return report


def everyone():
    """Healthy models, and a batch for each."""
    return [
        (TorchTransformer(), pairs_batch()),
        (NanoGPT(), (IDS, IDS)),
        (Toy(), {"input_ids": IDS}),
        (hugging_face("gpt2"), {"input_ids": IDS, "labels": IDS}),
        (hugging_face("llama"), {"input_ids": IDS}),
        (hugging_face("t5"), {"input_ids": IDS, "labels": IDS}),
    ]


@pytest.mark.parametrize("check", ["unregistered-parameters", "no-gradient", "shared-layers"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_silent_on_the_healthy(check):
    for model, batch in everyone():
        report = asked(check, model, batch)
        assert report.passed == [check] and not report.notes, report.text()


# unregistered-parameters


def in_a_list(self):
    layers = list(self.layers)
    del self.layers
    self.layers = layers


def in_a_dict(self):
    layers = list(self.layers)
    del self.layers
    self.held = {"blocks": layers}
    self.through = lambda self, x: self.held["blocks"][0](x)
    self.layers = nn.ModuleList([])


def a_tensor(self):
    self.scale = torch.ones(16, requires_grad=True)
    self.through = lambda self, x: x * self.scale


@pytest.mark.parametrize(
    ("wire", "first", "tensors"),
    [(in_a_list, "layers[0].weight", 6), (in_a_dict, "held['blocks'][0].weight", 2), (a_tensor, "scale", 1)],
)
def test_what_parameters_does_not_list_is_found_and_named(wire, first, tensors):
    (finding,) = asked("unregistered-parameters", Toy(wire)).findings
    assert finding.severity == "P1" and finding.evidence["tensors"] == tensors
    assert finding.evidence["the first of them"] == first
    assert finding.where.symbol == "Toy.__init__"


def test_a_list_of_hugging_faces_layers_is_found():
    model = hugging_face("gpt2")
    layers = list(model.transformer.h)
    del model.transformer.h
    model.transformer.h = layers
    (finding,) = asked("unregistered-parameters", model).findings
    assert "GPT2Model.h" in finding.message and finding.where.path.endswith("modeling_gpt2.py")


def test_layers_made_anew_in_each_pass_are_another_checks_finding():
    report = asked("unregistered-parameters", Toy(through=lambda self, x: nn.Linear(16, 16)(x)))
    assert report.passed


def test_a_given_input_with_a_gradient_is_no_parameter():
    class Takes(Toy):
        def forward(self, input_ids, bias):
            return super().forward(input_ids) + bias

    batch = {"input_ids": IDS, "bias": torch.zeros((), requires_grad=True)}
    assert asked("unregistered-parameters", Takes(), batch).passed


# no-gradient


def detached(self, x):
    return x.detach()


@pytest.mark.parametrize(
    ("through", "cut"),
    [
        (detached, {"table.weight", "layers.0.weight", "layers.2.bias"}),
        (lambda self, x: F.linear(x, self.layers[0].weight, self.layers[0].bias.data) * 0 + x, set()),
        (lambda self, x: x.clone().data, {"table.weight"}),
    ],
)
def test_a_cut_is_found(through, cut):
    report = asked("no-gradient", Toy(through=through))
    named = " ".join(finding.message for finding in report.findings)
    assert bool(report.findings) == bool(cut), report.text()
    if cut:
        assert "table.weight" in named and report.findings[0].severity == "P1"
        assert report.findings[0].evidence["parameters"] == 7


def test_an_encoder_under_no_grad_is_found_in_hugging_faces_bart(monkeypatch):
    model = hugging_face("bart")
    encoder = type(model.model.encoder)
    monkeypatch.setattr(encoder, "forward", torch.no_grad()(encoder.forward))
    (finding,) = asked("no-gradient", model, {"input_ids": IDS, "labels": IDS}).findings
    names = [name for name, _ in model.model.encoder.named_parameters() if "embed_tokens" not in name]
    assert "model.encoder.embed_positions" in finding.message and finding.evidence["parameters"] == len(names)


def test_a_copy_that_computes_with_the_model_itself_is_a_skip():
    """As a forward does that was replaced on an instance: a deep copy keeps the function, and with it the model."""
    model = Toy()
    original = model.layers[0].forward
    model.layers[0].forward = lambda x: original(x)
    assert "replaced on an instance" in asked("unregistered-parameters", model).skipped["unregistered-parameters"]


def test_a_factor_of_zero_is_found():
    def zeroed(self, x):
        return x + 0 * self.layers[1](x)

    class Alone(Toy):
        def forward(self, input_ids):
            return self.out(zeroed(self, self.table(input_ids)))

    report = asked("no-gradient", Alone())
    (finding,) = report.findings
    assert "layers.1.weight" in finding.message and "exactly zero" in finding.message
    assert "layers.0.weight" in report.notes[0].message  # which nothing uses


def test_what_is_frozen_on_purpose_is_left_alone():
    model = Toy()
    model.layers.requires_grad_(False)
    assert asked("no-gradient", model).passed
    report = asked("no-gradient", Toy().requires_grad_(False))
    assert "no parameter of the model is trainable" in report.skipped["no-gradient"]


def test_a_projection_that_starts_at_zero_is_no_cut():
    """ReZero, adapters, zero-initialised outputs: behind them nothing has a gradient before the first step."""

    def rezero(self):
        self.gate = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.layers[2].weight)
        self.through = lambda self, x: x + self.gate * self.layers[0](x)

    assert asked("no-gradient", Toy(rezero)).passed


def test_keys_biases_have_no_gradient_and_are_no_finding():
    """It is zero in exact arithmetic: a softmax does not see what is added to all scores."""
    model = hugging_face("bart")
    assert asked("no-gradient", model, {"input_ids": IDS, "labels": IDS}).passed


def test_what_no_pass_uses_is_a_note():
    report = asked("no-gradient", Toy(lambda self: setattr(self, "pooler", nn.Linear(16, 16))))
    assert not report.findings and "pooler.weight" in report.notes[0].message


def test_experts_without_a_token_are_no_cut():
    class Experts(Toy):
        def forward(self, input_ids):
            x = self.table(input_ids)
            for number, expert in enumerate(self.layers):
                chosen = input_ids % 7 == number * 100  # none goes to the second and third
                x = x.index_put((chosen,), expert(x[chosen]))
            return self.out(x)

    report = asked("no-gradient", Experts())
    assert not report.findings and "layers.1.weight" in report.notes[0].message


def test_a_forward_without_gradients_is_a_finding_or_a_skip():
    """In eval mode alone is as it should be; in both, nothing can be trained."""

    def guarded(always):
        def through(self, x):
            return x if self.training and not always else x.detach()

        return through

    assert asked("no-gradient", Toy(through=guarded(False))).passed
    assert asked("no-gradient", Toy(through=guarded(True))).findings


# optimizer-coverage


def coverage(model, optimizer):
    return asked("optimizer-coverage", model, optimizer=optimizer)


def test_an_optimizer_of_all_that_learns_passes():
    model = Toy()
    model.layers[0].requires_grad_(False)
    groups = [{"params": list(model.table.parameters())}, {"params": [*model.layers.parameters()]}]
    optimizer = torch.optim.AdamW([*groups, {"params": list(model.out.parameters()), "lr": 1e-5}])
    assert coverage(model, optimizer).passed


def test_a_head_replaced_after_the_optimizer_was_made_is_found():
    model = hugging_face("bart")
    optimizer = torch.optim.AdamW(model.parameters())
    model.lm_head = nn.Linear(16, VOCAB, bias=False)
    (finding,) = coverage(model, optimizer).findings
    assert finding.severity == "P1" and "lm_head.weight" in finding.message
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters())
    model.out = nn.Linear(16, VOCAB, bias=False)
    (finding,) = coverage(model, optimizer).findings
    assert "made before these were replaced" in finding.message
    assert finding.evidence["held, and of no part of the model"] == 1


def test_an_optimizer_of_a_copy_is_found():
    model = Toy()
    (finding,) = coverage(model, torch.optim.SGD(copy.deepcopy(model).parameters())).findings
    assert finding.evidence["not held"] == 8


def test_parameters_left_out_are_found_by_build_too():
    def build():
        model = Toy()
        return model, torch.optim.AdamW([p for p in model.parameters() if p.dim() > 1]), None

    (finding,) = asked("optimizer-coverage", Toy(), build=build).findings
    assert "layers.0.bias" in finding.message and finding.evidence["not held"] == 3


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({}, "needs optimizer="),
        ({"build": lambda: 1 / 0}, "ZeroDivisionError"),
        ({"build": lambda: (1, 2)}, "must give"),
    ],
)
def test_a_skip_of_optimizer_coverage_says_what_to_give(how, reason):
    assert reason in asked("optimizer-coverage", Toy(), **how).skipped["optimizer-coverage"]


# tied-weights


def tie(self):
    self.out.weight = self.table.weight


def tie_values(self):
    self.out.weight.data.copy_(self.table.weight.data)


def test_a_tied_head_passes_and_a_copied_one_does_not():
    assert asked("tied-weights", Toy(tie), tied=True).passed
    (finding,) = asked("tied-weights", Toy(tie_values), tied=True).findings
    assert finding.severity == "P2" and "equal now" in finding.message
    (finding,) = asked("tied-weights", Toy(), tied=True).findings
    assert "table.weight and out.weight are two" in finding.message


def test_whether_tying_is_asked_for_is_read_off_the_config():
    model = hugging_face("gpt2")
    assert model.config.tie_word_embeddings and asked("tied-weights", model).passed
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert asked("tied-weights", model).findings
    assert "not asked for" in asked("tied-weights", hugging_face("llama")).skipped["tied-weights"]
    assert "give tied=True" in asked("tied-weights", Toy()).skipped["tied-weights"]


def test_positions_as_many_as_tokens_are_not_taken_for_the_tokens():
    class Positions(Toy):
        def __init__(self):
            super().__init__(tie)
            self.position = nn.Embedding(VOCAB, 16)

        def forward(self, input_ids):
            x = self.table(input_ids) + self.position(torch.arange(input_ids.size(1)))
            return self.out(x)

    assert asked("tied-weights", Positions(), tied=True).passed


def test_weights_untied_by_loading_are_found():
    def load(path):
        model = Toy(tie)
        model.table.weight = nn.Parameter(torch.load(path)["table.weight"])
        return model

    def load_well(path):
        model = Toy(tie)
        model.load_state_dict(torch.load(path))
        return model

    model = Toy(tie)
    with torch.random.fork_rng():
        import tempfile

        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            torch.save(model.state_dict(), file.name)
            (finding,) = asked("tied-weights", model, tied=True, checkpoint=file.name, load=load).findings
            assert "two in the model that is loaded" in finding.message and finding.where.symbol.endswith("load")
            assert asked("tied-weights", model, tied=True, checkpoint=file.name, load=load_well).passed


# shared-layers


def multiplied(self):
    self.layers = nn.ModuleList([nn.Linear(16, 16)] * 3)


def multiplied_in_a_list(self):
    del self.layers
    self.layers = [nn.Linear(16, 16)] * 3


def in_sequence(self):
    self.stack = nn.Sequential(*[nn.Linear(16, 16)] * 4)


@pytest.mark.parametrize(
    ("wire", "layers"),
    [(multiplied, 3), (multiplied_in_a_list, 3), (in_sequence, 4)],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_one_layer_listed_many_times_is_found(wire, layers):
    (finding,) = asked("shared-layers", Toy(wire)).findings
    assert finding.severity == "P2" and finding.evidence == {
        "layers": layers,
        "objects": 1,
        "elements of all": 16 * 16 + 16,
    }
    assert finding.where.symbol == "Toy.__init__"


def test_sharing_on_purpose_is_silent():
    def activations(self):
        self.stack = nn.Sequential(nn.Linear(16, 16), relu := nn.ReLU(), nn.Linear(16, 16), relu)

    def calls_one_often(self):
        self.layers = nn.ModuleList([nn.Linear(16, 16)])
        self.through = lambda self, x: self.layers[0](self.layers[0](x))

    def says_so(self):
        multiplied(self)
        self.config = type("Config", (), {"share_layers": True})()

    for wire in (activations, calls_one_often, says_so):
        report = asked("shared-layers", Toy(wire))
        assert report.passed and not report.notes

    def recurs(self):
        shared = nn.Linear(16, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 16), shared, nn.Linear(16, 16), shared])

    report = asked("shared-layers", Toy(recurs))
    assert not report.findings and report.notes  # as Zamba does


def test_a_model_that_raises_is_skipped():
    def raises(self, x):
        raise RuntimeError("in the middle")

    for check in ("unregistered-parameters", "no-gradient", "tied-weights"):
        report = asked(check, Toy(through=raises), tied=True)
        assert "in the middle" in report.skipped[check], report.text()
