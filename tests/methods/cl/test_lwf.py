"""LwF by hand: the term and its gradient, who the teacher is, and on which rows it is asked."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.engine.loop.outputs import ForwardOutputs, Logits
from sparsecl.errors import UserError
from sparsecl.methods.cl.config import LwfConfig
from sparsecl.methods.cl.lwf import Lwf
from tests.methods.cl.test_packnet import FACTS
from tests.methods.plain import PlainContext, batch


def outputs(logits: torch.Tensor, rows: Any) -> ForwardOutputs:
    """The same logits [V] after every token."""
    found = logits.expand(len(rows), len(rows[0]) - 1, -1)
    return ForwardOutputs(found.logsumexp(-1) - found[..., 0], Logits(found, 0, len(logits)))


class Run:
    """A model that is a row of logits; its copies answer with those of their moment."""

    def __init__(self, logits: list[float], **options: Any) -> None:
        self.weight = nn.Parameter(torch.tensor(logits))
        self.method = Lwf(LwfConfig(**options))
        optimizer = torch.optim.SGD([self.weight], lr=0.1)
        self.context = PlainContext(self.weight, optimizer, [self.method])
        self.context.frozen_copy = self.copy  # type: ignore[attr-defined]
        self.asked: list[Any] = []
        self.copies = 0

    def copy(self, masters: Any = None) -> Any:
        then = (masters or {"weight": self.weight})["weight"].detach().clone()
        self.copies += 1

        def teacher(rows: np.ndarray) -> Any:
            self.asked.append(rows.tolist())
            return outputs(then, rows)

        return teacher

    def term(self, found: Any = None) -> torch.Tensor | None:
        found = batch(np.zeros((3, 5), np.int64), 1) if found is None else found
        return self.method.loss(self.context, found, outputs(self.weight, found.rows))


def learned(**options: Any) -> Run:
    """The phase before has ended at [1, 0]; the model has moved to [0, 0] since."""
    run = Run([1.0, 0.0], **options)
    run.method.phase_start(run.context.at(0, phase=1))
    with torch.no_grad():
        run.weight.zero_()
    return run


def test_the_vector_of_the_card():
    """KD is .693147, of which .662847 is the teacher's entropy; tau = 2."""
    run = learned(alpha=3.0)
    term = run.term()
    assert term is not None
    p = torch.tensor([0.5, 0.0]).softmax(-1)
    entropy = -float((p * p.log()).sum())
    assert entropy == pytest.approx(0.662847, abs=1e-6)
    assert float(term.detach()) / 3.0 + entropy == pytest.approx(0.693147, abs=1e-6)
    term.backward()
    assert run.weight.grad is not None
    assert (run.weight.grad / 3.0).tolist() == pytest.approx([-0.061230, 0.061230], abs=1e-6)


def test_a_student_that_is_its_teacher_is_not_pulled():
    run = Run([1.0, 0.0])
    run.method.phase_start(run.context.at(0, phase=1))
    term = run.term()
    assert term is not None and float(term.detach()) == pytest.approx(0.0, abs=1e-7)
    term.backward()
    assert run.weight.grad is not None
    assert run.weight.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-7)


def test_the_first_phase_has_no_teacher():
    run = Run([1.0, 0.0])
    run.method.phase_start(run.context)
    assert run.term() is None and not run.copies and run.method.state_dict() == ({}, {})


def test_alpha_zero_keeps_nothing():
    run = learned(alpha=0.0)
    assert run.term() is None and not run.copies and not run.method.needs_outputs
    assert Lwf(LwfConfig()).needs_outputs


def test_it_is_asked_of_the_new_rows_alone():
    run = learned()
    new = np.arange(15).reshape(3, 5)
    old = batch(np.full((2, 5), 7), phase=0)
    found = batch(new, phase=1)
    alone, beside = run.term(found), run.term(found.beside(old.rows, old.origin))
    assert run.asked == [new.tolist()] * 2
    assert alone is not None and beside is not None and alone.equal(beside)


def test_a_resume_has_the_same_teacher_and_a_border_makes_one_later():
    run = learned()
    tensors, values = run.method.state_dict()
    assert tensors["masters"]["weight"].tolist() == [1.0, 0.0]
    other = Run([0.0, 0.0])
    other.method.check_state(tensors, values)
    other.method.load_state_dict(tensors, values)
    other.method.resumed(other.context.at(3, phase=1, data_step=0))
    terms = [one.term() for one in (run, other)]
    assert terms[0] is not None and terms[1] is not None and terms[0].equal(terms[1])
    other.method.resumed(other.context.at(0, phase=2))
    assert other.copies == 1 and other.term() is None
    with pytest.raises(ValueError, match="it keeps masters, not other"):
        other.method.check_state({"other"}, {})


def test_it_does_not_go_on_in_the_middle_of_a_phase_without_its_teacher():
    run = Run([1.0, 0.0])
    run.method.began_anew(run.context.at(4, phase=0))
    run.method.began_anew(run.context.at(0, phase=1))  # its phase_start comes next
    with pytest.raises(UserError, match="methods.lwf: the model at the end of the phase before"):
        run.method.began_anew(run.context.at(4, phase=1))


def test_a_graph_that_moves_is_refused():
    moving = replace(FACTS, rewires=True, others=("set",))
    with pytest.raises(ValueError, match="moves live weights.*Leave out one of set"):
        LwfConfig().check(moving)
    LwfConfig().check(FACTS)
