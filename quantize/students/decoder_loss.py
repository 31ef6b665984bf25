"""Losses of a decoder, each over the places at which it is to say an answer's next token.

Logits are [places, vocabulary]; every loss is a mean over places, in nats. Knows nothing of models or data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the tokens `labels` [places]: a teacher's answers learned word by word.

    >>> round(float(answer_loss(torch.zeros(2, 4), torch.tensor([0, 3]))), 4) == round(math.log(4), 4)
    True
    """
    return functional.cross_entropy(logits, labels)


def choice_loss(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Cross-entropy with `labels` [places] among these and their `rivals` [places, k], of which -1 are none.

    What the model finds of all other tokens does not count, as it will not when it has to choose.

    >>> logits = torch.tensor([[0.0, 0.0, 9.0], [0.0, 0.0, 9.0]])
    >>> losses = [choice_loss(logits[:1], torch.tensor([0]), torch.tensor([[other, -1]])) for other in (1, -1)]
    >>> [round(float(each), 4) for each in losses] == [round(math.log(2), 4), 0.0]
    True
    """
    own = logits.gather(-1, labels[:, None])
    others = logits.gather(-1, rivals.clamp(min=0)).masked_fill(rivals < 0, -math.inf)
    return (torch.logsumexp(torch.cat([own, others], -1), -1) - own[:, 0]).mean()


def distillation_loss(logits: Tensor, ids: Tensor, logprobs: Tensor, tail: Tensor) -> Tensor:
    """KL divergence from a teacher of the same vocabulary: its k most likely tokens, and all others as one class.

    `ids` [places, k], `logprobs` [places, k] and `tail` [places] are those of `teachers.top_logits.TopLogits`:
    nothing is renormalised, which would pull the student's head above the teacher's.

    >>> teacher = torch.log_softmax(torch.tensor([[2.0, 1.0, 0.0]]), -1)
    >>> ids, tail = torch.tensor([[0, 1]]), teacher[:, 2]
    >>> round(float(distillation_loss(teacher, ids, teacher[:, :2], tail)), 6)
    0.0
    """
    own = functional.log_softmax(logits, -1)
    head = own.gather(-1, ids)
    rest = torch.log1p(-head.exp().sum(-1).clamp(max=1 - 1e-6))
    divergence = (logprobs.exp() * (logprobs - head)).sum(-1) + tail.exp() * (tail.clamp(min=-60.0) - rest)
    return divergence.mean()


def confidence_loss(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Sure where it is right, unsure where it is wrong (Gatekeeper, arXiv 2502.19335).

    `alpha` of cross-entropy at the places that it gets right, 1 - `alpha` of the divergence from the uniform
    distribution at the others.

    >>> logits = torch.tensor([[5.0, 0.0], [5.0, 0.0]])
    >>> right, wrong = torch.tensor([0, 0]), torch.tensor([1, 1])
    >>> bool(confidence_loss(logits, right, 0.5) < 0.01 < 0.3 < confidence_loss(logits, wrong, 0.5))
    True
    """
    own = functional.log_softmax(logits, -1)
    right = logits.argmax(-1) == labels
    learned = -own.gather(-1, labels[:, None])[:, 0]
    spread = (own.exp() * own).sum(-1) + math.log(logits.shape[-1])
    return torch.where(right, alpha * learned, (1 - alpha) * spread).mean()
