"""Attention against its formula and `torch.nn.MultiheadAttention`; masked rows; the cache."""

import math

import pytest
import torch
from torch import nn

from lab import masks
from lab.attention import KVCache, LayerCache, MultiHeadAttention, attend, attention_weights

B, H, T, S, D = 2, 2, 4, 5, 8
TYPES = [torch.float32, torch.float64, torch.bfloat16]


def some_mask(queries: int = T, keys: int = S) -> torch.Tensor:
    """Every third key blocked, a different one for each query and row; query 1 of row 0 may attend nowhere."""
    mask = torch.arange(B * queries * keys).view(B, 1, queries, keys) % 3 != 0
    mask[0, 0, 1] = False
    return mask


def heads(*lengths: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(B, H, length, D // H, dtype=dtype) for length in lengths]


def layer(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> MultiHeadAttention:
    torch.manual_seed(1)
    return MultiHeadAttention(D, H, dropout).to(dtype)


def test_attend_is_its_formula():
    query, key, value = heads(T, S, S, dtype=torch.float64)
    mask = some_mask()
    scores = query @ key.transpose(-1, -2) / math.sqrt(D // H)
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0) @ value
    torch.testing.assert_close(attend(query, key, value, mask), expected)


@pytest.mark.parametrize("queries", [1, S])
def test_without_a_mask_all_queries_or_the_last_are_causal(queries):
    query, key, value = heads(S, S, S)
    whole = attend(query, key, value, masks.causal(S))
    torch.testing.assert_close(attend(query[:, :, -queries:], key, value, None), whole[:, :, -queries:])


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_are_a_distribution_over_the_keys_that_may_be_seen(dtype):
    query, key = heads(T, S, dtype=dtype)
    mask = some_mask()
    weights = attention_weights(query, key, mask)
    assert weights.shape == (B, H, T, S)
    assert (weights[~mask.expand_as(weights)] == 0).all(), "a blocked key has weight exactly 0"
    assert (weights[mask.expand_as(weights)] > 0).all()
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    rows = mask.any(-1).expand(B, H, T).to(dtype)  # 1, and 0 where nothing may be seen
    torch.testing.assert_close(weights.sum(-1), rows, atol=tolerance, rtol=0)


def test_weights_times_values_are_the_output():
    query, key, value = heads(T, S, S)
    mask = some_mask()
    torch.testing.assert_close(attention_weights(query, key, mask) @ value, attend(query, key, value, mask))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_asking_for_weights_changes_no_bit(training, cross):
    attention = layer(dropout=0.5).train(training)
    x, memory = torch.randn(B, T, D), torch.randn(B, S, D) if cross else None
    mask = some_mask(T, S if cross else T)
    outputs, states = [], []
    for need_weights in (False, True):
        torch.manual_seed(2)
        outputs.append(attention(x, memory, mask, need_weights=need_weights)[0])
        states.append(torch.get_rng_state())
    assert torch.equal(*outputs)
    assert torch.equal(*states), "nor the random numbers that later layers draw"


def test_weights_are_those_before_dropout():
    attention, x, mask = layer(dropout=0.5), torch.randn(B, T, D), some_mask(T, T)
    _, training = attention.train()(x, mask=mask, need_weights=True)
    _, evaluating = attention.eval()(x, mask=mask, need_weights=True)
    assert torch.equal(training, evaluating)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_that_sees_nothing_is_zero_with_finite_gradients(dtype, need_weights):
    attention = layer(dtype=dtype)
    x = torch.randn(B, T, D, dtype=dtype, requires_grad=True)
    out, weights = attention(x, mask=some_mask(T, T), need_weights=need_weights)
    assert torch.equal(out[0, 1], attention.out_proj.bias), "zeros, so that only the output bias is left"
    (out.square().sum() + (weights.square().sum() if need_weights else 0)).backward()
    for tensor in (x, *attention.parameters()):
        assert tensor.grad.isfinite().all() and tensor.grad.any()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_query_that_sees_nothing_gets_no_gradient(dtype):
    query, key, value = (tensor.requires_grad_() for tensor in heads(T, S, S, dtype=dtype))
    attend(query, key, value, some_mask()).square().sum().backward()
    assert not query.grad[0, :, 1].any()
    assert query.grad[0, :, 0].any()


@pytest.mark.parametrize("cross", [False, True])
def test_equals_torch_multihead_attention(cross):
    ours, theirs = layer(), nn.MultiheadAttention(D, H, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.in_proj.weight,
            "in_proj_bias": ours.in_proj.bias,
            "out_proj.weight": ours.out_proj.weight,
            "out_proj.bias": ours.out_proj.bias,
        }
    )
    x = torch.randn(B, T, D)
    memory = torch.randn(B, S, D) if cross else x
    mask = some_mask(T, memory.size(1))
    mask[0, 0, 1, 0] = True  # theirs has NaN for a row that sees nothing, when asked for weights
    out, weights = ours(x, memory if cross else None, mask, need_weights=True)
    blocked = ~mask.expand(B, H, -1, -1).flatten(0, 1)  # theirs takes True = blocked
    expected = theirs(x, memory, memory, attn_mask=blocked, average_attn_weights=False)
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(weights, expected[1])


def test_memory_without_a_mask_is_seen_whole():
    attention, x, memory = layer(), torch.randn(B, T, D), torch.randn(B, S, D)
    everything = torch.ones(T, S, dtype=torch.bool)
    torch.testing.assert_close(attention(x, memory)[0], attention(x, memory, everything)[0])


@pytest.mark.parametrize("pieces", [[1, 1, 1, 1], [3, 1], [1, 3], [2, 2]])
def test_a_cache_fed_in_pieces_equals_the_whole(pieces):
    attention, x, cache = layer().eval(), torch.randn(B, T, D), LayerCache(max_len=T)
    out = []
    for piece, mask in zip(x.split(pieces, dim=1), masks.causal(T).split(pieces), strict=True):
        seen = cache.length + piece.size(1)
        out.append(attention(piece, mask=mask[:, :seen], cache=cache)[0])
    torch.testing.assert_close(torch.cat(out, dim=1), attention(x)[0])


def test_memory_is_projected_once():
    attention, memory, cache = layer(), torch.randn(B, S, D), LayerCache(max_len=T)
    x, mask = torch.randn(B, 1, D), torch.ones(1, S, dtype=torch.bool)
    first = attention(x, memory, mask, cache=cache)[0]
    assert torch.equal(attention(x, torch.zeros_like(memory), mask, cache=cache)[0], first)


def test_reorder_moves_rows_with_all_their_past():
    cache = KVCache(num_layers=1, max_len=3)
    key, value = heads(2, 2)
    cache.extend(torch.tensor([[5, 6], [7, 8]]))
    cache.layers[0].append(key, value)
    cache.reorder(torch.tensor([1, 1]))
    keys, values = cache.layers[0].append(key[:, :, :1], value[:, :, :1])
    assert cache.extend(torch.tensor([[9], [9]])).tolist() == [[7, 8, 9], [7, 8, 9]]
    assert torch.equal(keys[:, :, :2], key[[1, 1]]) and torch.equal(values[:, :, :2], value[[1, 1]])


def test_a_chunk_without_a_mask_is_refused():
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match="3 queries and 5 keys need a mask"):
        attend(query, key, key, None)
