"""DST-CL by hand: graphs of two domains on eight weights (methods2.md, DST-CL)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.errors import UserError
from sparsecl.methods.dst.base import look
from sparsecl.methods.sparse_cl.config import DstClConfig
from sparsecl.methods.sparse_cl.dst_cl import DstCl
from sparsecl.methods.sparse_cl.isolated import packed, unpacked
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.sparse.registry import masks
from sparsecl.topology.layer import LayerShape, LayerTopology
from tests.methods.plain import FACTS, START, PlainContext

WEIGHTS = torch.tensor([[0.5, -0.1, 0.0, 0.0], [0.3, -0.2, 0.0, 0.0]])
LIVE = np.array([[True, True, False, False], [True, True, False, False]])


class Model(nn.Module):
    """A linear 4 -> 2 of eight weights, and a norm of two."""

    def __init__(self) -> None:
        super().__init__()
        shape = LayerShape("q", "q", 2, 4)
        self.q = ColumnParallelSparseLinear(shape, LayerTopology.from_mask("q", LIVE))
        self.q.fill(WEIGHTS)
        self.q.init_std = 0.1
        self.norm = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm * self.q(x)


class Run:
    """Phases of ten steps under Adam, with x as the gradient of W's rows."""

    def __init__(self, **options: Any) -> None:
        self.method, self.model = DstCl(DstClConfig(**options)), Model()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.5)
        self.context = PlainContext(
            self.model, self.optimizer, [self.method], dead=masks(self.model)
        )
        self.phase = -1

    def begin(self, domain: str) -> None:
        self.phase += 1
        self.context.domain = domain
        self.context.at(10 * self.phase, phase=self.phase, phase_step=0)
        self.method.phase_start(self.context)

    def step(self, *, applied: bool = True) -> None:
        self.context.methods.step_start(self.context)
        self.optimizer.zero_grad()
        self.model(torch.tensor([[0.1, -0.2, 0.9, 0.4]])).sum().backward()
        self.context.step(self.optimizer, applied=applied)

    def end(self) -> None:
        self.context.methods.phase_end(self.context)

    @property
    def live(self) -> torch.Tensor:
        return self.model.q.live_mask()

    @property
    def weights(self) -> torch.Tensor:
        return self.model.q.weight.detach().clone()

    def grown(self, num: int) -> list[int]:
        choice = look(self.context, "q.weight")
        return self.method.grow(self.context, choice, num).tolist()


def test_the_drop_fraction_falls_to_its_end_and_what_goes_is_rounded_up():
    run = Run()
    found = [run.method.fraction(replace(START, phase_step=t)) for t in (0, 5, 10)]
    assert found == pytest.approx([0.5, 0.2525, 0.005])
    run = Run(schedule="constant", drop_fraction=0.5)
    run.model.q.set_topology(LayerTopology.from_mask("q", np.ones((2, 4), bool)))
    run.model.q.fill(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))
    run.model.q.set_topology(
        LayerTopology.from_mask("q", np.array([[True] * 4, [True] * 3 + [False]]))
    )
    gone = run.method.drop(run.context, look(run.context, "q.weight"))
    assert gone.tolist() == [0, 1, 2, 3]  # methods2.md: nnz 7, f .5 -> 4


@pytest.mark.parametrize(
    ("drop", "gone"),
    [
        ("magnitude", [1, 5]),  # |w| .5 .1 .3 .2
        ("per_sign", [4, 1]),  # 0.3 of the positive, -0.1 of the negative
        ("gradient", [1, 4]),  # w g: .05 .02 .03 .04
    ],
)
def test_what_goes(drop, gone):
    run = Run(drop=drop, schedule="constant", every=1)
    run.context.methods.step_start(run.context)
    run.model(torch.tensor([[0.1, -0.2, 0.9, 0.4]])).sum().backward()
    found = run.method.drop(run.context, look(run.context, "q.weight"))
    assert found.tolist() == gone


def test_nothing_dropped_is_plain_training_in_the_first_phase():
    """Bit for bit."""
    run = Run(every=2, drop_fraction=0.0, final_fraction=0.0)
    plain = Model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.5)
    context = PlainContext(plain, optimizer, [], dead=masks(plain))
    run.begin("a")
    for _ in range(5):
        run.step()
        optimizer.zero_grad()
        plain(torch.tensor([[0.1, -0.2, 0.9, 0.4]])).sum().backward()
        context.step(optimizer)
    assert torch.equal(run.weights, plain.q.weight)
    assert torch.equal(run.model.norm, plain.norm)


def test_two_domains_on_eight_weights():
    run = Run(every=3, growth="gradient")
    run.begin("a")
    for _ in range(2):
        run.step()
    assert run.live.numpy().tolist() == LIVE.tolist()
    run.step(applied=False)
    assert run.live.numpy().tolist() == LIVE.tolist()  # a discarded step moves nothing
    run.context.at(2)
    run.step()
    # ceil(f 4) = 2 go: -0.1 and -0.2; 0.9 is the largest gradient of both rows.
    assert run.live.tolist() == [[True, False, True, False], [True, False, True, False]]
    assert (run.weights[:, 2] == 0).all()
    run.step()
    first, graph = run.weights, run.live.clone()
    run.end()
    norm = run.model.norm.detach().clone()
    run.begin("b")
    assert int(run.live.sum()) == 4
    both = run.live & graph
    assert torch.equal(run.weights[both], first[both])
    assert (run.weights[run.live & ~graph] != 0).all()
    for _ in range(4):
        run.step()
        assert run.context.guard.audit(run.context.progress.step) == 0
    assert torch.equal(run.model.norm, norm)
    now = run.weights
    assert not torch.equal(now, first)
    with run.method.scoring(run.context, "a"):
        assert torch.equal(run.weights, first)
    with run.method.scoring(run.context, "b"):
        assert torch.equal(run.weights, now)
    with run.method.scoring(run.context, "c"):
        assert torch.equal(run.weights, now)
    assert torch.equal(run.weights, now)
    assert not (run.live & graph & ~both).any()  # what is frozen never grows by gradient


def test_a_frozen_weight_that_is_grown_again_comes_with_its_value():
    run = Run(every=1, growth="random", drop_fraction=0.9, schedule="constant")
    run.begin("a")
    run.step()
    run.end()
    run.begin("b")
    frozen, kept = run.method.frozen(run.context, "q.weight"), run.method.kept["q.weight"]
    seen = torch.zeros_like(frozen)
    for _ in range(9):
        run.step()
        again = run.live & frozen
        assert torch.equal(run.weights[again], kept[again])
        assert int(run.live.sum()) == 4
        seen |= again
    assert seen.any() and (run.live & frozen != seen).any()


def test_growth_of_what_has_never_lived_comes_first_and_then_all():
    run = Run(growth="unfired")
    run.begin("a")
    assert sorted(run.grown(3)) != sorted(run.grown(4))  # the second has one that has lived
    found = run.grown(4)
    assert sorted(found) == [2, 3, 6, 7]  # all that is absent
    run.method.lived["q.weight"] = packed(torch.tensor([[1, 1, 1, 0], [1, 1, 0, 1]]).bool())
    assert run.grown(3)[:2] in ([3, 6], [6, 3])


def test_momentum_is_the_mean_gradient_over_the_root_of_that_of_squares():
    run = Run(growth="momentum", every=9)
    run.begin("a")
    run.method.step_start(run.context)
    run.step()
    mean, square = run.method.means["q.weight"], run.method.squares["q.weight"]
    gradient = torch.tensor([0.1, -0.2, 0.9, 0.4]).expand(2, 4)
    assert torch.allclose(mean, 0.1 * gradient) and torch.allclose(square, 0.001 * gradient**2)
    mean[0, 3] = 9.0
    assert run.grown(1) == [3]


def test_nothing_left_is_an_error_before_the_phase():
    run = Run()
    run.begin("a")
    run.end()
    run.method.graphs[0]["q.weight"] = packed(torch.ones(2, 4, dtype=torch.bool))
    before = run.live.clone()
    with pytest.raises(UserError) as caught:
        run.begin("b")
    assert str(caught.value) == (
        "methods.dst_cl: phase 1 (b) has nothing to train in q.weight: 0 of its 8 weights belong "
        "to no earlier domain, and of the 4 of its graph none. Lower topology.density, or train "
        "fewer phases."
    )
    assert torch.equal(run.live, before)


def test_its_state_goes_and_comes_back():
    run = Run(growth="momentum", every=2)
    run.begin("a")
    run.step()
    run.end()
    tensors, values = run.method.state_dict()
    arrays = run.method.arrays()
    other = DstCl(DstClConfig(growth="momentum"))
    other.check_state(tensors, values)
    other.check_arrays(arrays, values)
    other.load_state_dict(tensors, values)
    other.load_arrays(arrays)
    assert other.phases == {"a": 0} and other.means.keys() == {"q.weight"}
    assert torch.equal(unpacked(other.graphs[0]["q.weight"], run.live.shape), run.live)
    other.load_state_dict({}, {"phases": {}})  # a rollback to before
    other.load_arrays({})
    assert other.state_dict() == ({}, {"phases": {}}) and not other.arrays()


BITS = torch.zeros(1, dtype=torch.uint8)
KEPT = {"kept.q": torch.zeros(2, 4)}


@pytest.mark.parametrize(
    ("tensors", "phases", "arrays", "said"),
    [
        (("kept",), {}, {}, "kept is not known"),
        ((), {"a": -1}, {}, "phases: 'a' has -1, which is no phase"),
        ((), {"a": 0}, {}, "phases: 1, with no graph"),
        ((), {"a": 1}, {**KEPT, "1.q": BITS}, "0.q is missing"),
        ((), {"a": 0}, {"0.q": BITS}, "kept.q is missing"),
        ((), {"a": 0}, {**KEPT, "0.q": torch.zeros(1)}, "no bits of a graph"),
        ((), {"a": 0}, {**KEPT, "0.q": BITS.repeat(2)}, "2 bytes, which is no bit for each of 8"),
        ((), {"a": 0}, {"kept.q": BITS, "0.q": BITS}, "no weights of a matrix"),
        ((), {}, {"mean.q": torch.zeros(2)}, "mean.q: torch.float32 \\[2\\] is no mean"),
        ((), {}, {"other.q": torch.zeros(2)}, "other.q is not known"),
    ],
)
def test_a_state_that_it_never_gives_is_refused(tensors, phases, arrays, said):
    method, values = DstCl(DstClConfig()), {"phases": phases}
    with pytest.raises(ValueError, match=said):
        method.check_state(tensors, values)
        method.check_arrays(arrays, values)


def test_without_its_state_it_does_not_go_on():
    run = Run()
    run.method.began_anew(run.context.at(5, phase=0))
    with pytest.raises(UserError, match="Resume it without --weights_only"):
        run.method.began_anew(run.context.at(10, phase=1))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"joint": True}, "phases.joint trains all at once"),
        ({"dense": True}, "no topology to move"),
        ({"storage": "packed"}, "use topology.storage=masked"),
        ({"live_products": True}, "use topology.backend=dense"),
        ({"freezing": ("packnet",)}, "packnet freezes weights"),
    ],
)
def test_runs_that_it_cannot_be_part_of(facts, said):
    plain = replace(FACTS, rewires=True)
    DstClConfig().check(plain)
    with pytest.raises(ValueError, match=said):
        DstClConfig().check(replace(plain, **facts))
