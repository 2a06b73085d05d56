"""How large a model is before it is trained: parameters, arithmetic and memory, by running it without any numbers.

A pass over fake tensors (shapes alone) calls what a true pass would call, so FLOPs and saved activations are those of
the code that runs, and a model of any size is counted in a moment.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.autograd.graph import saved_tensors_hooks

from .checks.shapes import count_parameters, matrix_size
from .config import ModelConfig
from .flops import forward_flops, undone
from .language_model import LanguageModel
from .published import short

Batch = Mapping[str, Tensor]
BATCHED = ("bmm", "baddbmm")  # the products of attention: of two activations, where the others take a weight
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
CONTEXTS = ("max_seq_len", "n_positions", "max_position_embeddings", "seq_length")
DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


@dataclass(frozen=True)
class Size:
    """What a model costs.

    parameters: all, each once. body: those that are no embedding; a head counts as an embedding, tied or not, and
    positions too. embedding: the rest. trainable: those that get a gradient.
    flops_per_token: of forward and backward pass for a token of the context `context`, counted in the operations that
    run, a multiply-add as 2 and the backward pass as twice the forward; the scores that a causal kernel may skip are
    in it, as is usual. attention_flops: of it, scores and weighted values. head_flops: the logits.
    weight_bytes: parameters and buffers. gradient_bytes. optimizer_bytes: AdamW's two moments. activation_bytes: what a
    forward pass of `rows` x `context` tokens saves for the backward one, in eager mode with the CPU's kernels (on which
    attention with dropout keeps T x T weights).
    """

    parameters: int
    body: int
    embedding: int
    trainable: int
    context: int
    rows: int
    flops_per_token: float
    attention_flops: float
    head_flops: float
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int

    @property
    def six_n(self) -> int:
        """FLOPs per token by 6 N, all parameters counted (Hoffmann et al. 2022)."""
        return 6 * self.parameters

    @property
    def six_n_body(self) -> int:
        """The same without embeddings (Kaplan et al. 2020)."""
        return 6 * self.body

    @property
    def causal_flops_per_token(self) -> float:
        """Where a kernel skips the half of the scores that a causal mask forbids."""
        return self.flops_per_token - self.attention_flops / 2

    @property
    def head_share(self) -> float:
        """The logits' share of the arithmetic, of a kernel that skips what is masked."""
        return self.head_flops / self.causal_flops_per_token if self.flops_per_token else 0.0

    @property
    def training_bytes(self) -> int:
        """Weights, gradients, moments and activations: a step takes no less."""
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes

    def tokens_per_parameter(self, tokens: float) -> float:
        """About 20 is compute-optimal by Hoffmann et al. 2022."""
        return tokens / self.parameters

    def as_dict(self) -> dict[str, Any]:
        """Fields and what follows from them, for JSON."""
        names = ("six_n", "six_n_body", "causal_flops_per_token", "head_share", "training_bytes")
        return asdict(self) | {name: getattr(self, name) for name in names}

    def text(self) -> str:
        """Four lines."""
        memory = ", ".join(f"{label} {mib(getattr(self, f'{name}_bytes'))}" for name, label in PARTS.items())
        share = self.embedding / self.parameters
        return "\n".join(
            [
                f"parameters       {self.parameters:,}: body {self.body:,}, embeddings {self.embedding:,}, {share:.0%}",
                f"FLOPs per token  {short(self.flops_per_token)} exact at a context of {self.context}; 6N "
                f"{short(self.six_n)}, of the body alone {short(self.six_n_body)}",
                f"of the exact     attention {short(self.attention_flops)}, head {short(self.head_flops)}, which is "
                f"{self.head_share:.0%} where attention skips what is masked",
                f"memory, MiB      {memory} ({self.rows} x {self.context} tokens); together {mib(self.training_bytes)}",
            ]
        )


PARTS = {"weight": "weights", "gradient": "gradients", "optimizer": "AdamW", "activation": "activations"}


def mib(count: float) -> str:
    return f"{count / 2**20:,.0f}" if count >= 100 * 2**20 else f"{count / 2**20:.2g}"


def size(
    model: ModelConfig | nn.Module,
    batch: Batch | None = None,
    *,
    rows: int = 1,
    context: int | None = None,
    precision: str = "fp32",
) -> Size:
    """Count a config's LanguageModel, or any module; no number is computed, and nothing changes.

    batch: what the model is called with, where ids (rows, context) by the names input_ids, labels and, where it takes
    them, decoder_input_ids are not what it needs. context: by default the longest that the config names. precision:
    "bf16" is autocast over fp32 weights. Every part is counted in the mode that it is in; a config is in train mode. A
    module whose own code looks at values (`if x.max() > 0`) is run after all, where its parameters are.

    Raises ValueError for a context, rows or precision that there is not, and for a module without parameters.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it is {' or '.join(PRECISIONS)}.")
    if rows < 1 or (context is not None and context < 1):
        raise ValueError(f"rows x context is {rows} x {context}; both must be at least 1.")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if isinstance(model, ModelConfig):
        with mode:
            model = LanguageModel(model)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; give a lab.ModelConfig or a torch.nn.Module.")
    if next(model.parameters(), None) is None:
        raise ValueError(f"{type(model).__name__} has no parameters; there is nothing to count.")
    batch = ids_for(model, rows, context) if batch is None else batch
    rows, context = next(iter(batch.values())).shape[:2]
    try:
        with mode:
            flops, saved = passed(model, {name: mode.from_tensor(t) for name, t in batch.items()}, precision, mode)
    except DATA_DEPENDENT:
        flops, saved = passed(model, batch, precision, None)
    head, vocabulary = head_of(model)
    parameters, body = count_parameters(model, vocabulary)
    per_token = 3 / (rows * context)
    trainable = [p for p in model.parameters() if p.requires_grad]
    learned = sum(p.numel() * p.element_size() for p in trainable)
    return Size(
        parameters=parameters,
        body=body,
        embedding=parameters - body,
        trainable=sum(p.numel() for p in trainable),
        context=context,
        rows=rows,
        flops_per_token=per_token * sum(flops.values()),
        attention_flops=per_token * sum(n for name, n in flops.items() if name.split(".")[-1] in BATCHED),
        head_flops=6.0 * head,
        weight_bytes=sum(t.numel() * t.element_size() for t in {*model.parameters(), *model.buffers()}),
        gradient_bytes=learned,
        optimizer_bytes=2 * learned,
        activation_bytes=saved,
    )


def ids_for(model: nn.Module, rows: int, context: int | None) -> dict[str, Tensor]:
    """Ids (rows, context) for each of input_ids, decoder_input_ids and labels that the model's forward names.

    Raises ValueError where it does not name input_ids, and where no context is known.
    """
    names = inspect.signature(model.forward).parameters
    if "input_ids" not in names:
        raise ValueError(f"{type(model).__name__}.forward takes {', '.join(names)} and no input_ids: give a batch=.")
    config = getattr(model, "config", None)
    known = [n for name in CONTEXTS if isinstance(n := getattr(config, name, None), int) and n > 0]
    if context is None and not known:
        raise ValueError(f"the config of {type(model).__name__} names no context: give context=.")
    ids = torch.ones(rows, context or known[0], dtype=torch.long)
    return {name: ids.clone() for name in ("input_ids", "decoder_input_ids", "labels") if name in names}


def passed(model: nn.Module, batch: Batch, precision: str, mode: FakeTensorMode | None) -> tuple[dict[str, int], int]:
    """FLOPs of a forward pass by operator, and the bytes that it saves beside parameters and the batch itself."""
    dtype = PRECISIONS[precision]
    flops = forward_flops(model, batch)
    # A parameter of a real model has a fake twin, which must live for as long as its storage tells it apart.
    known = [*model.parameters(), *batch.values()]
    known += [mode.from_tensor(tensor) for tensor in known] if mode is not None else []
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    device = next(model.parameters()).device.type
    cast = nullcontext() if dtype is None else torch.autocast(device, dtype)
    with undone(model), torch.enable_grad(), cast, saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**batch)
    for tensor in known:
        saved.pop(tensor.untyped_storage()._cdata, None)
    return flops, sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def head_of(model: nn.Module) -> tuple[int, int | None]:
    """(parameters of the matrix that makes logits, size of the vocabulary); (0, None) for a model without one."""
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    own = getattr(model, "get_output_embeddings", lambda: None)()
    matrices = [own] if own is not None else list(model.modules())
    sizes = [found for found in map(matrix_size, matrices) if found and found[1] == max(tables, default=None)]
    return (sizes[-1][0] * sizes[-1][1], sizes[-1][1]) if sizes else (0, None)
