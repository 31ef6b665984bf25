"""Losses against their definitions, in double precision and the long way round."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")

import torch

from quantize.students.decoder_loss import confidence_loss, distillation_loss

LOGITS = torch.tensor([[1.0, 0.5, -1.0, 0.2], [0.0, 2.0, 0.1, -0.3]])
TEACHER = torch.log_softmax(torch.tensor([[0.3, 1.5, 0.0, -1.0], [1.0, 1.0, 1.0, 0.0]]), -1)


def test_distillation_is_the_divergence_over_the_head_and_the_rest() -> None:
    ids = torch.tensor([[1, 0], [0, 1]])
    head = TEACHER.gather(-1, ids)
    tail = torch.log1p(-head.exp().sum(-1))
    expected = 0.0
    own = torch.softmax(LOGITS, -1)
    for row in range(2):
        classes = [(math.exp(head[row, at]), float(own[row, ids[row, at]])) for at in range(2)]
        classes.append((math.exp(tail[row]), 1 - sum(each for _, each in classes)))
        expected += sum(p * math.log(p / q) for p, q in classes) / 2
    assert float(distillation_loss(LOGITS, ids, head, tail)) == pytest.approx(expected, rel=1e-5)


def test_a_teacher_without_a_rest_and_a_sure_student_give_numbers() -> None:
    ids, sure = torch.tensor([[0]]), torch.tensor([[80.0, 0.0, 0.0]], requires_grad=True)
    loss = distillation_loss(sure, ids, torch.zeros(1, 1), torch.tensor([-math.inf]))
    loss.backward()
    assert abs(loss.item()) < 1e-3
    assert sure.grad is not None
    assert torch.isfinite(sure.grad).all()


def test_confidence_pulls_up_what_is_right_and_spreads_what_is_wrong() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0]], requires_grad=True)
    confidence_loss(logits, torch.tensor([0, 1]), 0.5).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] < 0 < logits.grad[1, 0]  # a step goes against the gradient
    own = torch.log_softmax(logits.detach(), -1)
    spread = float((own[1].exp() * own[1]).sum()) + math.log(3)
    expected = (0.25 * -float(own[0, 0]) + 0.75 * spread) / 2
    assert float(confidence_loss(logits.detach(), torch.tensor([0, 1]), 0.25)) == pytest.approx(expected, rel=1e-5)
