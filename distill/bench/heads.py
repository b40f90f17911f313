"""The output head alone: loss and gradients from hidden states, by our code, full logits, and other packages.

Besides time and peak memory, this measures errors of the loss and of the hidden states' gradient against the
definition in float64, because savings only count if the result is correct."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.bench.inputs import shape_of
from distill.bench.measurement import Setting
from distill.bench.meter import Meter
from distill.losses.chunked import weighted_token_losses
from distill.losses.divergence import cross_entropy, forward_kl, jsd, reverse_kl
from distill.losses.inputs import WeightedTerm
from distill.models.head import Head

Kind = Literal["sft", "forward_kl", "reverse_kl", "jsd"]
Way = Literal["ours", "full", "freed", "liger", "trl_chunked", "torchtune"]
_BETA: dict[Kind, float] = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
_TOKEN_LOSS = {"sft": cross_entropy, "forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jsd}

# Inputs of one step: hidden states, output matrix, the teacher's hidden states and output matrix, labels.
Tensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def head(setting: Setting, meter: Meter, kind: Kind, way: Way, exact: bool = True) -> None:
    """Measure repeated forward and backward passes over `setting.head_tokens` tokens.

    Args:
        setting: setting of the measurement.
        meter: meter to report every step to.
        kind: which loss; the mean over all tokens.
        way: implementation. `full`: straightforward, from full logits; `freed`: the same with each tensor
            freed as early as possible.
        exact: also compute the errors against float64.
    """
    loss_of = _way(kind, way, meter)
    loss_of(draw(replace(setting, head_tokens=32, vocabulary=256))).backward()  # triggers lazy imports
    tensors = draw(setting)
    hidden, weight = tensors[:2]
    meter.needed = hidden.element_size() * (hidden.numel() + weight.numel())  # the gradients
    meter.begin()
    loss = torch.zeros(())
    while not meter.done:
        hidden.grad = weight.grad = None
        loss = loss_of(tensors)
        loss.backward()
        meter.step(loss, len(hidden))
    if exact:
        assert hidden.grad is not None
        errors = _errors(kind, way, tensors, loss, hidden.grad)
        meter.figures |= dict(zip(("loss_error", "gradient_error"), errors, strict=True))
        few = _in_bf16(tensors, tokens=256)
        loss = loss_of(few)
        loss.backward()
        assert few[0].grad is not None
        errors = _errors(kind, way, few, loss, few[0].grad)
        meter.figures |= dict(zip(("loss_error_bf16", "gradient_error_bf16"), errors, strict=True))


def _errors(kind: Kind, way: Way, tensors: Tensors, loss: Tensor, gradient: Tensor) -> tuple[float, float]:
    """Relative errors of the loss and of the hidden states' gradient against float64."""
    value, exact = definition(kind, tensors)
    if way == "torchtune" and kind == "forward_kl":
        value = value + _entropy(tensors)
    distance = (gradient.double() - exact).norm() / exact.norm()
    return float((loss.detach().double() - value).abs() / value), float(distance)


def _in_bf16(tensors: Tensors, tokens: int) -> Tensors:
    """The first tokens, rounded to bf16."""
    hidden, weight, theirs, their_weight, labels = (tensor.detach() for tensor in tensors)
    return (
        hidden[:tokens].bfloat16().requires_grad_(),
        weight.bfloat16().requires_grad_(),
        theirs[:tokens].bfloat16(),
        their_weight.bfloat16(),
        labels[:tokens],
    )


def draw(setting: Setting) -> Tensors:
    """Random inputs whose logits are spread like a trained model's."""
    shape = shape_of(setting)
    size = setting.vocabulary or shape.vocabulary
    torch.manual_seed(setting.seed)
    device = torch.device(setting.device)

    def normal(rows: int, scale: float) -> Tensor:
        return torch.randn(rows, shape.hidden, device=device, dtype=dtype).mul_(scale)

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32  # as in training
    spread = 2.0 / shape.hidden**0.5
    hidden = normal(setting.head_tokens, 1.0)
    theirs = hidden + normal(setting.head_tokens, 0.5)
    weight = normal(size, spread)
    their_weight = weight.clone()
    labels = torch.randint(size, (setting.head_tokens,), device=device)
    return hidden.requires_grad_(), weight.requires_grad_(), theirs, their_weight, labels


def _way(kind: Kind, way: Way, meter: Meter) -> Callable[[Tensors], Tensor]:
    if way == "ours":
        return lambda tensors: ours(kind, tensors)
    if way in ("full", "freed"):
        return lambda tensors: from_logits(kind, tensors, freed=way == "freed")
    from distill.bench import peers

    meter.packages.add({"liger": "liger-kernel", "trl_chunked": "trl", "torchtune": "torchtune"}[way])
    if kind == "sft" and way == "liger":  # a Triton kernel, for GPUs only
        fused = peers.peer("liger_kernel.transformers:LigerFusedLinearCrossEntropyLoss")()
        return lambda tensors: fused(tensors[1], tensors[0], tensors[4])
    if kind == "sft":
        return lambda tensors: peers.trl_cross_entropy(tensors[0], tensors[1], tensors[4])
    if way == "liger":
        loss = peers.liger_jsd(_BETA[kind])
        return lambda tensors: loss(*tensors)
    if way == "trl_chunked":
        beta = _BETA[kind]
        return lambda tensors: peers.trl_divergence(*_one_row(tensors), beta=beta)
    torchtune = peers.torchtune_of_states(kind)
    return lambda tensors: torchtune(*_one_row(tensors))


def _one_row(tensors: Tensors) -> Tensors:
    hidden, weight, theirs, their_weight, labels = tensors
    return hidden.unsqueeze(0), weight, theirs.unsqueeze(0), their_weight, labels.unsqueeze(0)


def ours(kind: Kind, tensors: Tensors) -> Tensor:
    hidden, weight, theirs, their_weight, labels = tensors
    each = torch.full((len(hidden),), 1 / len(hidden), device=hidden.device)
    return weighted_token_losses(
        Head(hidden, weight),
        labels,
        [WeightedTerm(_TOKEN_LOSS[kind], each)],
        others={} if kind == "sft" else {"log_p": Head(theirs, their_weight)},
    ).total


def from_logits(kind: Kind, tensors: Tensors, *, freed: bool) -> Tensor:
    """Straightforward implementation: logits of all tokens and torch's loss; `freed`: logits are freed once
    their log-softmax is computed."""
    hidden, weight, theirs, their_weight, labels = tensors
    logits = hidden @ weight.T
    if kind == "sft":
        return F.cross_entropy(logits, labels)
    log_q = torch.log_softmax(logits, -1)
    if freed:
        del logits
    with torch.no_grad():
        teacher_logits = theirs @ their_weight.T
        log_p = torch.log_softmax(teacher_logits, -1)
        if freed:
            del teacher_logits
    return _divergence(kind, log_q, log_p).sum() / len(hidden)


def _divergence(kind: Kind, log_q: Tensor, log_p: Tensor) -> Tensor:
    """Summands [tokens, vocab] of the divergence."""
    if kind == "forward_kl":
        return F.kl_div(log_q, log_p, reduction="none", log_target=True)
    if kind == "reverse_kl":
        return F.kl_div(log_p, log_q, reduction="none", log_target=True)
    mean = torch.logaddexp(log_q, log_p) - torch.log(torch.tensor(2.0, dtype=log_q.dtype))
    both = (F.kl_div(mean, one, reduction="none", log_target=True) for one in (log_p, log_q))
    return sum(both, torch.zeros((), dtype=log_q.dtype, device=log_q.device)) / 2


def definition(kind: Kind, tensors: Tensors, chunk: int = 64) -> tuple[Tensor, Tensor]:
    """Compute the loss and its gradient with respect to the hidden states in float64, directly from the
    formula, a few tokens at a time."""
    hidden, weight, theirs, their_weight, labels = (tensor.detach() for tensor in tensors)
    weight, their_weight = weight.double(), their_weight.double()
    total, gradients = weight.new_zeros(()), []
    for at in range(0, len(hidden), chunk):
        s = slice(at, at + chunk)
        states = hidden[s].double().requires_grad_()
        log_q = torch.log_softmax(states @ weight.T, -1)
        if kind == "sft":
            loss = F.nll_loss(log_q, labels[s], reduction="sum")
        else:
            log_p = torch.log_softmax(theirs[s].double() @ their_weight.T, -1)
            loss = _divergence(kind, log_q, log_p).sum()
        (gradient,) = torch.autograd.grad(loss / len(hidden), states)
        gradients.append(gradient)
        total += loss.detach() / len(hidden)
    return total, torch.cat(gradients)


def _entropy(tensors: Tensors, chunk: int = 64) -> Tensor:
    """The mean entropy of the teacher in float64."""
    theirs, matrix = tensors[2], tensors[3].double()
    parts = [torch.log_softmax(part.double() @ matrix.T, -1) for part in theirs.split(chunk)]
    return -torch.stack([(part.exp() * part).sum() for part in parts]).sum() / len(theirs)
