"""Both models give the numbers of implementations that nobody here wrote: Hugging Face's GPT-2, torch's Transformer.

`python -m tests.test_parity` prints the largest differences.
"""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab import masks
from lab.attention import KVCache
from lab.config import ModelConfig
from lab.labels import IGNORE_INDEX, pad
from lab.language_model import LanguageModel
from lab.transformer import Transformer

PAD, SIDES = 0, ["none", "right", "left"]
ROWS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17, 5]]
SOURCES = [[6, 7, 8], [5, 6, 7, 8, 9], [10, 11]]
TOLERANCE = 1e-5


def padded(rows: list[list[int]], side: str) -> Tensor:
    return torch.tensor([(row * 6)[:6] for row in rows]) if side == "none" else pad(rows, PAD, side)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest one; never a NaN, which no comparison would find."""
    assert ours.shape == theirs.shape and ours.isfinite().all() and theirs.isfinite().all()
    assert ours.abs().max() > 1e-3, "two zeros agree on nothing"
    return (ours - theirs).abs().max().item()


# Hugging Face's GPT-2


def gpt2(seed: int = 0):
    """A random tiny GPT2LMHeadModel and a LanguageModel, and the parameters of both in pairs (theirs transposed?)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    size = {"vocab_size": 20, "n_embd": 16, "n_head": 4, "n_layer": 2, "n_inner": 40, "n_positions": 12}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    theirs = GPT2LMHeadModel(GPT2Config(**size, activation_function="gelu_new", initializer_range=0.3, **special))
    for parameter in theirs.parameters():  # theirs start with zero biases, which would hide a swapped one
        parameter.data += 0.1 * torch.randn_like(parameter)
    config = ModelConfig(20, 16, 4, 2, 40, 12, dropout=0.0, pad_id=PAD)
    ours = LanguageModel(config)
    body = theirs.transformer
    pairs = [
        (ours.embedder.token.weight, body.wte.weight, False),
        (ours.embedder.position.weight, body.wpe.weight, False),
        *of_layer(ours.norm, body.ln_f),
    ]
    for block, layer in zip(ours.blocks, body.h, strict=True):
        pairs += of_layer(block.self_norm, layer.ln_1) + of_layer(block.ff_norm, layer.ln_2)
        for linear, conv in [
            (block.self_attention.in_proj, layer.attn.c_attn),
            (block.self_attention.out_proj, layer.attn.c_proj),
            (block.feed_forward.up, layer.mlp.c_fc),
            (block.feed_forward.down, layer.mlp.c_proj),
        ]:
            pairs += [(linear.weight, conv.weight, True), (linear.bias, conv.bias, False)]
    assert len(pairs) == len(list(ours.parameters())) == len(list(theirs.parameters()))
    for mine, other, transposed in pairs:
        mine.data.copy_(other.data.T if transposed else other.data)
    return ours.eval(), theirs.eval(), pairs


def of_layer(ours: nn.Module, theirs: nn.Module) -> list[tuple[Tensor, Tensor, bool]]:
    return [(ours.weight, theirs.weight, False), (ours.bias, theirs.bias, False)]


def fed_to_gpt2(ids: Tensor) -> dict[str, Tensor]:
    real = ids != PAD
    return {
        "input_ids": ids,
        "attention_mask": real.long(),
        "position_ids": (real.cumsum(1) - 1).clamp(min=0),
    }


def gpt2_logits(side: str) -> float:
    ours, theirs, _ = gpt2()
    ids = padded(ROWS, side)
    real = ids != PAD
    return difference(ours(ids).logits[real], theirs(**fed_to_gpt2(ids)).logits[real])


def gpt2_loss_and_gradients(side: str) -> tuple[float, float]:
    ours, theirs, pairs = gpt2()
    ids = padded(ROWS, side)
    labels = ids.masked_fill(ids == PAD, IGNORE_INDEX)
    if side == "left":  # else theirs predicts the first token from the pad before it
        first = (ids != PAD) & ((ids != PAD).cumsum(1) == 1)
        labels = labels.masked_fill(first, IGNORE_INDEX)
    one_ahead = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    mine, other = ours(ids, one_ahead).loss, theirs(**fed_to_gpt2(ids), labels=labels).loss
    mine.backward()
    other.backward()
    return difference(mine, other), max(difference(a.grad, b.grad.T if t else b.grad) for a, b, t in pairs)


@torch.no_grad()
def gpt2_token_by_token(side: str) -> float:
    ours, theirs, _ = gpt2()
    ids = padded(ROWS, side)
    cache = KVCache(2, 12)
    logits = torch.cat([ours(token, cache=cache).logits for token in ids.split(1, dim=1)], dim=1)
    real = ids != PAD
    return difference(logits[real], theirs(**fed_to_gpt2(ids)).logits[real])


@pytest.mark.parametrize("side", SIDES)
def test_logits_of_gpt2(side):
    assert gpt2_logits(side) < TOLERANCE


@pytest.mark.parametrize("side", SIDES)
def test_loss_and_gradients_of_gpt2(side):
    assert max(gpt2_loss_and_gradients(side)) < TOLERANCE


@pytest.mark.parametrize("side", SIDES)
def test_gpt2_token_by_token_with_a_cache(side):
    assert gpt2_token_by_token(side) < TOLERANCE


@torch.no_grad()
def test_without_a_pad_id_gpt2_is_plain_causal():
    ours, theirs, _ = gpt2()
    ours.config = ours.embedder.config = ours.config.replace(pad_id=None)
    ids = torch.tensor([[0, 5, 0, 6, 0, 0]])
    assert difference(ours(ids).logits, theirs(ids).logits) < TOLERANCE


# torch's Transformer


def both_transformers(norm: str, activation: str) -> tuple[Transformer, nn.Transformer]:
    torch.manual_seed(0)
    config = ModelConfig(
        20, 16, 4, 2, 40, 8, dropout=0.1, norm=norm, activation=activation, positions="sinusoidal", pad_id=PAD
    )
    ours = Transformer(config)
    for parameter in ours.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    theirs = nn.Transformer(
        16,
        4,
        2,
        2,
        40,
        activation=partial(F.gelu, approximate="tanh") if activation == "gelu" else F.relu,
        batch_first=True,
        norm_first=norm == "pre",
    )
    weights = {}

    def copy(name: str, module: nn.Module, packed: bool = False) -> None:
        for key, value in module.state_dict().items():
            weights[f"{name}{'_' if packed else '.'}{key}"] = value

    for half in ("encoder", "decoder"):
        copy(f"{half}.norm", getattr(ours, f"{half}_norm"))
        for i, block in enumerate(getattr(ours, half)):
            layer = f"{half}.layers.{i}"
            cross = half == "decoder"
            copy(f"{layer}.self_attn.in_proj", block.self_attention.in_proj, packed=True)
            copy(f"{layer}.self_attn.out_proj", block.self_attention.out_proj)
            if cross:
                copy(f"{layer}.multihead_attn.in_proj", block.cross_attention.in_proj, packed=True)
                copy(f"{layer}.multihead_attn.out_proj", block.cross_attention.out_proj)
                copy(f"{layer}.norm2", block.cross_norm)
            copy(f"{layer}.linear1", block.feed_forward.up)
            copy(f"{layer}.linear2", block.feed_forward.down)
            copy(f"{layer}.norm1", block.self_norm)
            copy(f"{layer}.norm{3 if cross else 2}", block.ff_norm)
    theirs.load_state_dict(weights)
    return ours.eval(), theirs.eval()


def transformer_outputs_and_gradients(norm: str, activation: str, side: str) -> tuple[float, float]:
    ours, theirs = both_transformers(norm, activation)
    source, target = padded(SOURCES, side), padded(ROWS, side)
    embedded = []  # what leaves our embedder: the source, then the target

    def keep(module, inputs, output):
        output.retain_grad()
        embedded.append(output)

    ours.embedder.register_forward_hook(keep)
    logits = ours(source, target).logits
    leaves = [x.detach().clone().requires_grad_() for x in embedded]
    hidden = theirs(
        *leaves,
        tgt_mask=~masks.causal(target.size(1)),  # theirs takes True = blocked
        src_key_padding_mask=source == PAD,
        tgt_key_padding_mask=target == PAD,
        memory_key_padding_mask=source == PAD,
    )
    expected = hidden @ ours.head.weight.T
    real = target != PAD
    direction = torch.randn(int(real.sum()), logits.size(-1), generator=torch.Generator().manual_seed(1))
    (logits[real] * direction).sum().backward()
    (expected[real] * direction).sum().backward()
    gradients = [
        difference(x.grad[ids != PAD], leaf.grad[ids != PAD])
        for x, leaf, ids in zip(embedded, leaves, (source, target), strict=True)
    ]
    return difference(logits[real], expected[real]), max(gradients)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_torch_transformer(norm, activation, side):
    outputs, gradients = transformer_outputs_and_gradients(norm, activation, side)
    assert outputs < TOLERANCE
    assert gradients < TOLERANCE


if __name__ == "__main__":
    for side in SIDES:
        loss, gradients = gpt2_loss_and_gradients(side)
        print(
            f"GPT-2, padding {side:5}: logits {gpt2_logits(side):.1e}, with cache {gpt2_token_by_token(side):.1e}, "
            f"loss {loss:.1e}, gradients {gradients:.1e}"
        )
    for case in itertools.product(["pre", "post"], ["relu", "gelu"], SIDES):
        outputs, gradients = transformer_outputs_and_gradients(*case)
        print(f"nn.Transformer, {' '.join(case):15}: logits {outputs:.1e}, gradients {gradients:.1e}")
