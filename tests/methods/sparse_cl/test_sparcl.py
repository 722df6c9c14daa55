"""SparCL by hand: what is pruned, whose gradient is kept, what is removed (methods2.md, SparCL)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sparsecl.errors import UserError
from sparsecl.methods.dst.base import look
from sparsecl.methods.sparse_cl.config import SparclConfig
from sparsecl.methods.sparse_cl.sparcl import Sparcl
from sparsecl.methods.sparse_cl.visits import Visits
from sparsecl.methods.work import LayerWork, RunWork
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.sparse.registry import masks
from sparsecl.topology.layer import LayerShape, LayerTopology
from tests.methods.plain import FACTS, START, PlainContext, batch

OFF = {"band": 0.0, "keep": 1.0, "remove": 0.0}
WEIGHTS = torch.tensor([[0.1, 0.5, 0.3, 0.02, 0.0, 0.0, 0.0, 0.0]])
GRADIENT = torch.tensor([[1.0, 0.0, 0.2, 2.0, 9.0, 9.0, 9.0, 9.0]])


class Run:
    """Eight weights of which four live, under SGD; the gradient of y = W x is x."""

    def __init__(self, **options: Any) -> None:
        self.method = Sparcl(SparclConfig(**{**OFF, **options}))
        self.layer = ColumnParallelSparseLinear(
            LayerShape("w", "up", 1, 8), LayerTopology.from_mask("w", WEIGHTS.numpy() != 0)
        )
        self.layer.fill(WEIGHTS)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=0.001)
        self.context = PlainContext(
            self.layer, self.optimizer, [self.method], dead=masks(self.layer)
        )
        self.method.phase_start(self.context)

    def step(self, x: torch.Tensor = GRADIENT) -> None:
        self.context.methods.step_start(self.context)
        self.optimizer.zero_grad()
        self.layer(x).sum().backward()
        self.context.step(self.optimizer)

    @property
    def live(self) -> list[int]:
        return self.layer.live_mask().view(-1).nonzero().view(-1).tolist()


def test_what_is_least_important_goes():
    """methods2.md: |w| [.1, .5, .3, .02], |g| [1, 0, .2, 2] -> [.6, .5, .4, 1.02]."""
    run = Run(band=0.25)
    run.method.start["weight"], run.method._sizes = 3, {"weight": GRADIENT.abs()}
    run.context.set_live("weight", torch.from_numpy(WEIGHTS.numpy() != 0))
    run.context.write("weight", WEIGHTS)
    choice = look(run.context, "weight")
    run.method._prune(run.context.at(5), choice)
    # 3 - 2 are left, the one of 1.02, and two come of those that were absent.
    assert 3 in run.live and not {0, 1, 2} & set(run.live) and len(run.live) == 3


def test_density_after_each_prune_and_grow():
    run = Run(band=0.125, every=2)
    assert len(run.live) == 5  # a phase begins with one more
    counts = []
    for _ in range(9):
        run.step()
        counts.append(len(run.live))
    assert counts == [5, 4, 4, 4, 4, 4, 4, 4, 4]
    run.context.at(10, phase=1, phase_step=0)
    run.method.phase_start(run.context)
    assert len(run.live) == 5


def test_nothing_grows_once_the_phase_settles():
    run = Run(band=0.125, every=2, settle=0.2)
    grown = set(run.live) - {0, 1, 2, 3}
    run.step()
    run.step()
    assert len(run.live) == 4 and set(run.live) < {0, 1, 2, 3} | grown
    before = run.live
    run.step()
    run.step()
    assert run.live == before


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"keep": 0.5}, [0, 3]),  # of four live ones
        ({"keep": 0.5, "denominator": "all"}, [0, 1, 2, 3]),  # of eight cells: nothing is masked
        ({"keep": 0.25, "denominator": "all"}, [0, 3]),
    ],
)
def test_the_largest_gradients_are_kept(options, kept):
    run = Run(**options)
    run.step()
    gradient = run.layer.weight.grad
    assert gradient is not None
    wanted = torch.zeros(8)
    wanted[kept] = GRADIENT[0, kept]
    assert torch.equal(gradient.view(-1), wanted)


def test_the_published_share_of_all_cells_is_most_of_the_live_ones():
    """methods2.md: density .25, 100 weights, 20 % of all = 80 % of the 25 live."""
    assert SparclConfig(keep=0.2, denominator="all").num_kept(25, 100) == 20
    assert SparclConfig(keep=0.8).num_kept(25, 100) == 20
    assert SparclConfig(keep=0.5, denominator="all").num_kept(25, 100) == 25


def test_what_is_kept_is_chosen_every_so_often():
    run = Run(keep=0.5, refresh=3)
    run.step()
    seen = []
    for _ in range(3):
        run.step(torch.tensor([[0.1, 5.0, 6.0, 0.2, 0.0, 0.0, 0.0, 0.0]]))
        assert run.layer.weight.grad is not None
        seen.append(run.layer.weight.grad.view(-1).nonzero().view(-1).tolist())
    assert seen == [[0, 3], [0, 3], [1, 2]]


def test_all_ranks_choose_at_the_same_steps():
    """A rank whose share of the optimizer has no sparse weights keeps nothing, and waits for the
    others only when they come; a resume knows it too."""
    run = Run(keep=0.5, refresh=3)
    assert run.method._refreshes(run.context)
    run.step()
    run.method.open.clear()
    tensors, values = run.method.state_dict()
    run.method.check_state(tensors, values)
    run.method.load_state_dict(tensors, values)
    assert not run.method._refreshes(run.context)
    assert run.method._refreshes(run.context.at(3))


def test_off_is_plain_training():
    run, plain = Run(), torch.optim.SGD([torch.nn.Parameter(WEIGHTS.clone())], lr=0.001)
    (param,) = plain.param_groups[0]["params"]
    for _ in range(3):
        run.step()
        param.grad = GRADIENT * (WEIGHTS != 0)
        plain.step()
    assert torch.equal(run.layer.weight, param)
    assert run.method.state_dict() == ({}, {"start": {}, "chosen": False})


class Losses:
    """Outputs of given losses, two tokens a row."""

    def __init__(self, rows: list[float]) -> None:
        self.losses = torch.tensor([rows, rows]).T


def read(run: Run, losses: list[float], *, applied: bool = True) -> np.ndarray:
    """A step of DDR on four of six pieces; its weights."""
    context, method = run.context, run.method
    method.step_start(context)
    names = np.arange(4) + 4 * context.progress.data_step
    given = method.batch(
        context,
        replace(batch(names[:, None]), origin=np.stack([np.zeros(4, np.int64), names], axis=1)),
    )
    method.loss(context, given, Losses(losses))  # pyright: ignore[reportArgumentType]
    step = context.progress.step + 1
    context.at(step)
    method.after_step(context, applied=applied)
    return given.weight


def test_the_easiest_sequences_are_removed_for_the_rest_of_the_phase():
    run = Run(remove=0.5, remove_until=0.4, portions=2)  # after steps 2 and 4
    # Six pieces, four a step: steps read 0123 4501 2345 0123 ...
    assert read(run, [4.0, 3.0, 2.0, 1.0]).tolist() == [1.0] * 4
    read(run, [1.0, 1.0, 5.0, 2.0])  # 0 rises, 1 falls: 1 and then 0 go, round(.25 x 6) = 2 of them
    assert np.flatnonzero(run.method.visits.gone).tolist() == [0, 1]
    assert read(run, [1.0] * 4).tolist() == [1.0] * 4  # 2345
    # 0123: the two that are left count double.
    assert read(run, [1.0, 1.0, 9.0, 0.5]).tolist() == [0.0, 0.0, 2.0, 2.0]
    # 2 has an event and 3 none; nothing else was visited twice.
    assert np.flatnonzero(run.method.visits.gone).tolist() == [0, 1, 2, 3]
    run.context.at(10, phase=1, phase_step=0)
    run.method.phase_start(run.context)
    assert not len(run.method.visits.gone)


def test_a_discarded_step_counts_no_visit():
    run = Run(remove=0.5, remove_until=0.2, portions=1)
    read(run, [4.0, 3.0, 2.0, 1.0], applied=False)
    assert run.method.arrays() == {}


def test_fewest_events_then_lowest_loss():
    visits = Visits()
    for losses in ([1.0, 1.0, 1.0], [2.0, 0.5, 0.2], [3.0, 0.6, 0.1]):
        visits.count(np.arange(3), np.array(losses, np.float32))
    assert visits.events.tolist() == [2, 1, 0]
    visits.remove(0.34)
    assert visits.removed(np.array([0, 1, 2, 7])).tolist() == [False, False, True, False]
    again = Visits.of(visits.arrays())
    assert again.arrays().keys() == visits.arrays().keys()
    assert all(torch.equal(again.arrays()[key], value) for key, value in visits.arrays().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gone": None}, "gone is missing"),
        ({"other": torch.zeros(1)}, "other is not known"),
        ({"last": torch.zeros(2)}, "last: torch.float32 \\[2\\] is not of all"),
    ],
)
def test_a_state_that_it_never_gives_is_refused(change, said):
    visits = Visits()
    visits.count(np.arange(3), np.zeros(3, np.float32))
    arrays = {k: v for k, v in {**visits.arrays(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=said):
        Sparcl(SparclConfig()).check_arrays(arrays, {"start": {}})


def test_without_its_state_it_does_not_go_on():
    method = Sparcl(SparclConfig())
    context = Run().context
    method.began_anew(context.at(0))
    with pytest.raises(UserError, match="Resume it without --weights_only"):
        method.began_anew(context.at(4))


def test_portions_and_the_end_of_growth():
    config = SparclConfig(remove_until=0.4, portions=4)
    times = [t for t in range(50) if config.removes(replace(START, phase_step=t, phase_steps=50))]
    assert times == [5, 10, 15, 20]  # the epochs of the public code
    at = replace(START, phase_steps=50)
    assert [config.settles(replace(at, phase_step=t)) for t in (44, 45)] == [False, True]


@pytest.mark.parametrize(
    ("options", "facts", "said"),
    [
        ({}, {"joint": True}, "remove=0.3: phases.joint mixes"),
        ({"band": 0.2}, {}, "band=0.2 leaves nothing of a density of 0.1"),
        ({}, {"storage": "packed"}, "use topology.storage=masked"),
    ],
)
def test_runs_that_it_cannot_be_part_of(options, facts, said):
    plain = replace(FACTS, density=0.1, rewires=True)
    SparclConfig().check(plain)
    with pytest.raises(ValueError, match=said):
        SparclConfig(**options).check(replace(plain, **facts))


def test_what_lives_above_the_start_is_in_the_flops():
    layer = LayerWork(outputs=1, inputs=8, live=4, sparse=False, has_gradient=True)
    run = RunWork(layers=(layer,), phases=(2, 3), tokens=10)
    # One more for the first two steps of each phase.
    assert SparclConfig(band=0.125, every=2).work(run).density == 6 * 10 * 4
    assert SparclConfig(band=0.0).work(run).density == 0
