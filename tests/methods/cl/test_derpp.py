"""DER++: what is remembered of a sequence, what is drawn, and the two terms.

Here sequence n of phase p is the row [100 p + n, 100 p + n], and the model a table: the logits
after token v are row v % 5 of it.
"""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.engine.loop.outputs import ForwardOutputs, Logits, weighted_mean
from sparsecl.methods.cl.config import DerppConfig
from sparsecl.methods.cl.derpp import Derpp
from sparsecl.methods.cl.reservoir import Reservoir
from sparsecl.methods.context import Batch
from tests.methods.plain import PlainContext, batch

V = 4


class Table:
    def __init__(self, values: torch.Tensor) -> None:
        self.weight = nn.Parameter(values)

    def __call__(self, rows: np.ndarray) -> ForwardOutputs:
        tokens = torch.from_numpy(rows[:, :-1]) % 5
        logits = self.weight[tokens]
        losses = logits.logsumexp(-1) - logits[..., 0]  # the target is always 0
        return ForwardOutputs(losses, Logits(logits, 0, V))


def table() -> Table:
    return Table(torch.randn(5, V, generator=torch.Generator().manual_seed(0)))


def step(method: Derpp, model: Table, number: int, *, phase: int = 0, applied: bool = True) -> Any:
    """One step on 4 new rows, at step `number` of phase and run; (batch, own loss, term)."""
    here = PlainContext(model.weight, torch.optim.SGD([model.weight], lr=0.1))
    here.at(number, phase=phase)
    first = 4 * number
    rows = np.stack([100 * phase + np.arange(first, first + 4)] * 2, axis=1)
    method.step_start(here)
    found = method.batch(here, batch(rows, phase, first))
    outputs = model(found.rows)
    term = method.loss(here, found, outputs)
    own = weighted_mean(outputs.losses, found)
    method.after_step(here.at(number + 1, phase=phase), applied=applied)
    return found, own, term


def remembering(**options: Any) -> tuple[Derpp, Table]:
    """Two steps are done, which fill 8 of 8 slots."""
    method, model = (
        Derpp(DerppConfig(**{"sequences": 8, "share": 0.5, "top": 2, **options})),
        table(),
    )
    for number in range(2):
        step(method, model, number)
    return method, model


def test_top_two_by_hand():
    """z = [2, 1, 0, -1] is remembered, new logits are all 1: of the two largest (1 + 0) / 2."""
    method = Derpp(DerppConfig(sequences=4, share=1.0, top=2, alpha=1.0, beta=0.0))
    model = Table(torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(5, 1))
    step(method, model, 0)
    assert method.memory["ids"][0].tolist() == [[0, 1]]
    assert method.memory["logits"][0].tolist() == [[2.0, 1.0]]
    assert abs(float(method.memory["logsumexp"][0]) - 2.440190) < 1e-6
    with torch.no_grad():
        model.weight.fill_(1.0)
    assert step(method, model, 1)[2].item() == 0.5
    # The rest of the mass: log(e^0 + e^-1) then, and the change of the logsumexp counts with it.
    then = method.memory
    rest = np.log(np.exp(2.440190) - np.exp(2.0) - np.exp(1.0))
    assert abs(rest - 0.313262) < 1e-5
    method = Derpp(DerppConfig(sequences=4, share=1.0, top=2, alpha=1.0, beta=0.0, rest=2.0))
    step(method, Table(torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(5, 1)), 0)
    moved = 1.0 + np.log(4.0) - 2.440190
    assert abs(step(method, model, 1)[2].item() - (0.5 + 2.0 * moved**2)) < 1e-5
    assert then["ids"].dtype == torch.int32


def test_what_is_remembered_is_what_the_model_said():
    method, model = remembering(sequences=16, top=9)  # all of a vocabulary of 4
    for (_, number), ids, logits, lse in zip(
        method.reservoir.names,
        *(method.memory[k] for k in ("ids", "logits", "logsumexp")),
        strict=False,
    ):
        wanted = model.weight[number % 5].detach()
        assert logits[0].equal(wanted[ids[0].long()]) and logits.shape == (1, V)
        assert (logits[0].diff() <= 0).all()
        torch.testing.assert_close(lse[0], wanted.logsumexp(-1))


def test_two_draws_and_a_loss_of_the_new_sequences_alone():
    method, model = remembering()
    found, own, term = step(method, model, 2, phase=1)
    assert len(found.rows) == 4 + 2 + 2 and method.replayed_sequences == 8
    assert method.replayed_by_phase == [8] and method.config.replayed_share == 1.0
    assert (found.origin @ [100, 1]).tolist() == found.rows[:, 0].tolist()
    logits, labels = found.extra["derpp.logits"], found.extra["derpp.labels"]
    assert logits.tolist() == [4, 5] and labels.tolist() == [6, 7]
    assert found.weight.tolist() == [2.0] * 4 + [0.0] * 4
    losses = model(found.rows).losses[:, 0]
    torch.testing.assert_close(own, losses[:4].mean())
    # The table has not moved, so only the labels' term is there.
    torch.testing.assert_close(term, 0.5 * losses[6:].mean())


def test_the_gradient_of_the_first_term():
    method, model = remembering(alpha=0.3, beta=0.0)
    with torch.no_grad():
        model.weight.add_(0.1)
    found, _, term = step(method, model, 2, applied=False)
    term.backward()
    wanted = torch.zeros(5, V)
    for row in found.rows[4:, 0]:
        slot = method.reservoir.names[:, 1].tolist().index(row)
        for token, then in zip(
            *(method.memory[k][slot, 0] for k in ("ids", "logits")), strict=True
        ):
            now = model.weight[row % 5, int(token)].detach()
            wanted[row % 5, int(token)] += 0.3 * 2 * (now - then) / (2 * 2)
    torch.testing.assert_close(model.weight.grad, wanted)


def test_without_weights_it_is_plain_training():
    method, model = remembering(alpha=0.0, beta=0.0)
    found, _, term = step(method, model, 2)
    assert len(found.rows) == 4 and found.plain and term is None


def test_an_evicted_sequence_takes_its_logits_with_it():
    method, model = Derpp(DerppConfig(sequences=3, share=0.5, top=1)), table()
    for number in range(6):
        step(method, model, number)
        with torch.no_grad():
            model.weight.add_(1.0)
    for (_, number), logits in zip(method.reservoir.names, method.memory["logits"], strict=True):
        then = table().weight[number % 5].detach() + number // 4
        torch.testing.assert_close(logits[0, 0], then.max())


def state(method: Derpp) -> Any:
    arrays = {key: value.tolist() for key, value in method.arrays().items()}
    return json.dumps([method.state_dict()[1], arrays])


def test_a_discarded_step_leaves_no_trace():
    method, model = remembering()
    before = state(method)
    step(method, model, 2, applied=False)
    assert state(method) == before


def test_state_goes_and_comes_back():
    method, model = remembering()
    values, arrays = method.state_dict()[1], dict(method.arrays())
    other = Derpp(method.config)
    other.check_state((), values)
    other.check_arrays(arrays, values)
    other.load_state_dict({}, json.loads(json.dumps(values)))
    other.load_arrays({key: value.clone() for key, value in arrays.items()})
    for number in (2, 3):
        (a, _, first), (b, _, second) = (step(m, model, number) for m in (method, other))
        assert a.rows.tolist() == b.rows.tolist() and first.equal(second)
    assert state(method) == state(other)
    empty = Derpp(method.config)
    empty.check_arrays(empty.arrays(), empty.state_dict()[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": None}, "ids is missing"),
        ({"more": torch.zeros(8)}, "more is not known"),
        ({"logits": torch.zeros(8, 1, 3)}, r"logits: \[8, 1, 3\] is not of 8 sequences"),
        ({"logsumexp": torch.zeros(7, 1)}, r"logsumexp: \[7, 1\] is not of 8"),
        ({"ids": torch.zeros(8, 1, 2)}, "ids: torch.float32 is not torch.int32"),
        ({"ids": torch.full((8, 1, 2), -1, dtype=torch.int32)}, "ids: no 2 token ids"),
    ],
)
def test_arrays_that_it_never_gave_are_refused(change, message):
    method, _ = remembering()
    arrays = {**method.arrays(), **change}
    arrays = {key: value for key, value in arrays.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        method.check_arrays(arrays, method.state_dict()[1])


def test_rows_beside_a_batch_leave_its_loss_alone():
    new = batch(np.zeros((3, 2), np.int64))
    losses = torch.tensor([[1.0], [2.0], [6.0]])
    both = new.beside(np.ones((2, 2), np.int64), np.ones((2, 2), np.int64))
    more = torch.cat([losses, torch.tensor([[50.0], [70.0]])])
    torch.testing.assert_close(weighted_mean(more, both), weighted_mean(losses, new))
    assert isinstance(both, Batch) and len(both.origin) == 5


def test_of_two_names_for_one_slot_the_later_has_it():
    class Dice:
        def integers(self, low: int, high: Any) -> Any:
            return np.array([0, 0, 1, 1, 7])

    rng: Any = Dice()
    assert Reservoir(2).slots(5, rng).tolist() == [0, -1, -1, 1, -1]
