"""Head and cross entropy as one, a few positions at a time: the (B, T, V) logits never exist.

Logits, their softmax and its gradient are the largest tensors of a training step: at 2,048 tokens and a vocabulary of
50,257 each takes 412 MB. Here one chunk of them serves for all three, and is used again by the next chunk. Since the
loss is the last thing that a forward pass computes, its gradients can be computed beside it (Wijmans et al. 2024, Cut
Your Losses; Hsu et al. 2024, Liger Kernel): a chunk is not needed again, and nothing is computed twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .labels import IGNORE_INDEX, cross_entropy

# Rows of logits start at multiples of this: with a vocabulary of odd size matmuls are up to 1.7 times slower.
ALIGNMENT = 64
# What fp16 gradients of logits are multiplied by in a chunk: at a vocabulary of 50,257 they begin at 2e-5, and below
# 6e-5 the type loses precision.
FP16_SCALE = 1024.0


def head_and_loss(
    head: nn.Linear, hidden: Tensor, labels: Tensor | None, config: ModelConfig, training: bool
) -> tuple[Tensor | None, Tensor | None]:
    """hidden (B, T, D), labels (B, T) -> logits (B, T, V) and loss (); no loss without labels.

    No logits with labels where the config has a loss_chunk.
    """
    smoothing = config.label_smoothing if training else 0.0
    if labels is None:
        return head(hidden), None
    if config.loss_chunk is not None:
        return None, linear_cross_entropy(hidden, head, labels, config.loss_chunk, smoothing)
    logits = head(hidden)
    return logits, cross_entropy(logits, labels, smoothing)


def linear_cross_entropy(
    hidden: Tensor, head: nn.Linear, labels: Tensor, chunk: int, label_smoothing: float = 0.0
) -> Tensor:
    """labels.cross_entropy(head(hidden), labels), `chunk` positions at a time: (B, T, D), (B, T) -> ().

    Matrix products are in the type of autocast where that is on; softmax, loss and the sums over chunks are in float32,
    or in float64 where hidden is. On a CPU without instructions for bf16 or fp16 the products are in float32: there
    these types are far slower, and no more exact.

    Raises ValueError for labels that do not fit, and for a head with a bias.
    """
    if hidden.dim() != 3 or hidden.shape[:-1] != labels.shape:
        raise ValueError(
            f"hidden {tuple(hidden.shape)} do not fit labels {tuple(labels.shape)}: need (B, T, D), (B, T)."
        )
    if head.bias is not None:
        raise ValueError("the head has a bias, which the chunked loss does not add; set loss_chunk to None.")
    kind, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    learning = torch.is_grad_enabled()
    loss, *_ = chunked(
        hidden.flatten(0, 1),
        head.weight,
        labels.flatten(),
        chunk,
        label_smoothing,
        dtype,
        learning and hidden.requires_grad,
        learning and head.weight.requires_grad,
    )
    return loss


# An operator of its own: torch.compile takes it as it is. Traced, the loop would be unrolled, and each of its products
# would get memory of its own.
@torch.library.custom_op("lab::chunked_cross_entropy", mutates_args=())
def chunked(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    chunk: int,
    label_smoothing: float,
    dtype: torch.dtype,
    hidden_learns: bool,
    weight_learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden (N, D), weight (V, D), labels (N,) -> mean loss (), the number of labels that count (), and the gradients
    of the summed loss for hidden (N, D) and weight (V, D), empty where nothing learns."""
    dtype = fast_type(hidden.device, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    n, vocab = len(hidden), len(weight)
    real = (labels != IGNORE_INDEX)[:, None]
    targets = labels[:, None].masked_fill(~real, 0)
    total = hidden.new_zeros((), dtype=wide)
    d_hidden = hidden.new_empty(hidden.shape if hidden_learns else 0, dtype=wide)
    d_weight = hidden.new_zeros(weight.shape if weight_learns else 0, dtype=wide)
    scale = FP16_SCALE if dtype == torch.float16 else 1.0
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        memory = hidden.new_empty(min(chunk, n), -(-vocab // ALIGNMENT) * ALIGNMENT)
        wide_memory = memory if dtype == wide else memory.to(wide)
        for start in range(0, n, chunk):
            rows = slice(start, min(start + chunk, n))
            x, target, counts = hidden[rows], targets[rows], real[rows]  # (c, D), (c, 1), (c, 1)
            logits, log_p = memory[: len(x)], wide_memory[: len(x)]  # (c, V and some)
            torch.mm(x, weight.T, out=logits[:, :vocab])
            if dtype != wide:
                log_p.copy_(logits)
            log_p[:, vocab:] = -torch.inf  # what fills up a row has probability 0
            torch.log_softmax(log_p, dim=-1, out=log_p)
            loss = -log_p[:, :vocab].gather(1, target)
            if label_smoothing:
                uniform = -log_p[:, :vocab].mean(-1, keepdim=True)
                loss = (1 - label_smoothing) * loss + label_smoothing * uniform
            total += loss.masked_fill(~counts, 0.0).sum()
            if not (hidden_learns or weight_learns):
                continue
            # The gradient of a row's loss for its logits: softmax minus (smoothed) one-hot.
            d_logits = log_p.exp_()
            if label_smoothing:
                d_logits -= label_smoothing / vocab
            d_logits.scatter_add_(1, target, torch.full_like(loss, label_smoothing - 1))
            if scale != 1:
                d_logits *= scale
            d_logits = (d_logits if dtype == wide else logits.copy_(d_logits))[:, :vocab]
            if hidden_learns:
                d_hidden[rows] = (d_logits @ weight) * (counts / scale).to(wide)
            if weight_learns:
                share = len(x) if scale != 1 else 1  # fp16 ends at 65,504: a mean over the rows stays below
                x = x * counts / share
                if dtype == wide:
                    d_weight.addmm_(d_logits.T, x)
                else:
                    d_weight.add_(d_logits.T @ x, alpha=share / scale)
    number = real.sum()
    return total / number.clamp(min=1), number, d_hidden, d_weight


@chunked.register_fake
def _(hidden, weight, labels, chunk, label_smoothing, dtype, hidden_learns, weight_learns):
    wide = torch.promote_types(dtype, torch.float32)
    return (
        hidden.new_empty((), dtype=wide),
        labels.new_empty(()),
        hidden.new_empty(hidden.shape if hidden_learns else 0, dtype=wide),
        hidden.new_empty(weight.shape if weight_learns else 0, dtype=wide),
    )


def keep_gradients(ctx, inputs, output) -> None:
    hidden, weight, *_ = inputs
    _, number, d_hidden, d_weight = output
    ctx.types = hidden.dtype, weight.dtype
    ctx.save_for_backward(number, d_hidden, d_weight)
    ctx.set_materialize_grads(False)


def scale_gradients(ctx, d_loss, *_) -> tuple[Tensor | None, ...]:
    """By what arrives from above, over the number of labels: before, a loss scale would not be known, and 1/N would be
    too small for fp16."""
    number, *gradients = ctx.saved_tensors
    factor = d_loss / number.clamp(min=1)
    scaled = [(g * factor).to(t) if g.numel() else None for g, t in zip(gradients, ctx.types, strict=True)]
    return *scaled, *[None] * 6


chunked.register_autograd(scale_gradients, setup_context=keep_gradients)


def fast_type(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type to multiply matrices in: float32 for a half type for which this CPU has no instructions."""
    known = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if device.type == "cpu" and dtype in known:
        supported = torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, known[dtype])()
        return dtype if supported else torch.float32
    return dtype
