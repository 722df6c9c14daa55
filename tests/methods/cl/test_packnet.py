"""PackNet by hand: what is pruned, who owns what, what is refused (methods2.md, PackNet)."""

import pytest
import torch
from torch import nn

from sparsecl.errors import UserError
from sparsecl.methods.cl.config import PackNetConfig
from sparsecl.methods.cl.packnet import PackNet
from sparsecl.methods.facts import RunFacts
from sparsecl.sparse.linear import ColumnParallelSparseLinear
from sparsecl.topology.layer import LayerShape, LayerTopology
from tests.methods.plain import FACTS, PlainContext

FIRST = [0.5, -0.1, 0.3, 0.1, -0.9, 0.2]


class Model(nn.Module):
    """One linear named q, 1 -> 6 or what its weights say, and a norm of two."""

    def __init__(self, weights: list[float], topology: LayerTopology | None = None) -> None:
        super().__init__()
        self.q = ColumnParallelSparseLinear(LayerShape("q", "q", len(weights), 1), topology)
        self.norm = nn.Parameter(torch.ones(2))
        self.q.fill(torch.tensor(weights)[:, None])

    def linears(self):
        return {"q": self.q}


class Run:
    """Phases on one model, under Adam with gradients that a test gives."""

    def __init__(self, weights: list[float], *, topology=None, **options) -> None:
        self.method = PackNet(PackNetConfig(**options))
        self.model = Model(weights, topology)
        self.method.attach(self.model, 3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.5)
        dead = {"q.weight": self.model.q.dead} if topology is not None else {}
        self.context = PlainContext(self.model, self.optimizer, [self.method], dead=dead)
        self.phase = -1

    def begin(self, domain: str) -> None:
        self.phase += 1
        self.context.domain = domain
        self.context.at(10 * self.phase, phase=self.phase, stage="train", stage_step=0)
        self.method.phase_start(self.context)
        self.method.stage_start(self.context)

    def take(self) -> None:
        self.context.at(10 * self.phase + 5, stage="retrain", stage_step=0)
        self.method.stage_start(self.context)

    def step(self, sign: float = 1.0) -> None:
        """Two steps. Adam's first is lr whatever the gradient, and weights of one magnitude would
        be pruned together."""
        for power in (1, 3):
            self.method.step_start(self.context)
            for param in self.model.parameters():
                size = torch.linspace(1.0, 2.0, param.numel()).view(param.shape)
                param.grad = sign * size**power
            self.context.step(self.optimizer)

    @property
    def weights(self) -> torch.Tensor:
        return self.model.q.weight.detach().view(-1)

    @property
    def owner(self) -> list[int]:
        return self.method.owner["q.weight"].tolist()


@pytest.mark.parametrize(
    ("weights", "prune", "gone"),
    [
        (FIRST, 0.5, [1, 3, 5]),
        ([0.5, -0.1, 0.1, 0.1, -0.9, 0.2], 0.34, [1, 2, 3]),  # rank 2; ties go too
        (FIRST, 0.0, []),
    ],
)
def test_the_smallest_go_and_the_rest_belongs_to_the_phase(weights, prune, gone):
    run = Run(weights, prune=prune)
    run.begin("a")
    run.take()
    assert run.weights.tolist() == pytest.approx(
        [0.0 if i in gone else w for i, w in enumerate(weights)]
    )
    assert run.owner == [0 if i in gone else 1 for i in range(6)]
    assert run.method.owner["norm"].tolist() == [1, 1]


def test_half_is_free_after_each_phase():
    """methods2.md: free .5, .25, .125 after three tasks; owners add up to all weights."""
    run = Run(torch.linspace(0.1, 1.6, 16).tolist())
    free = []
    for domain in ("a", "b", "c"):
        run.begin(domain)
        run.step()
        run.take()
        free.append(run.owner.count(0) / 16)
    assert free == [0.5, 0.25, 0.125]
    assert sorted(set(run.owner)) == [0, 1, 2, 3] and len(run.owner) == 16


def test_what_is_owned_keeps_every_bit_and_what_is_pruned_stays_zero():
    run = Run(FIRST)
    run.begin("a")
    run.step()
    run.take()
    taken, pruned = run.weights != 0, run.weights == 0
    before = run.weights.clone()
    run.step()
    assert (run.weights[taken] != before[taken]).all() and (run.weights[pruned] == 0).all()
    moments = run.optimizer.state[run.model.q.weight]
    assert (moments["exp_avg"].view(-1)[pruned] == 0).all()
    assert (run.model.norm != 1).all()  # the first phase trains everything
    kept, norm = run.weights.clone(), run.model.norm.detach().clone()
    for domain in ("b", "c"):
        run.begin(domain)
        run.step(-2.0)
        assert (moments["exp_avg"].view(-1)[taken] == 0).all()
        run.take()
        run.step()
        assert run.context.guard.audit(run.phase) == 0
    assert torch.equal(run.weights[taken], kept[taken]) and torch.equal(run.model.norm, norm)
    assert (run.weights[pruned] != 0).any()  # later phases have used what was free


def test_a_domain_is_tested_with_what_was_there_then():
    run = Run(FIRST)
    seen = {}

    def score(domain):
        with run.method.scoring(run.context, domain):
            return run.weights.tolist()

    for domain in ("a", "b", "a"):
        run.begin(domain)
        run.step()
        now = run.weights.tolist()
        if domain not in seen:
            assert score(domain) == now  # not trained yet: as it stands
        run.take()
        run.step()
        others = {name: score(name) for name in seen if name != domain}
        assert others == {name: seen[name] for name in others}
        seen[domain] = score(domain)
        assert seen[domain] == run.weights.tolist()
    assert score("b") != run.weights.tolist()


def test_only_live_weights_are_ranked_and_owned():
    mask = torch.tensor([True, False, True, True, False, True])[:, None]
    topology = LayerTopology.from_mask("q", mask.numpy())
    run = Run([0.4, 0.0, 0.3, 0.2, 0.0, 0.1], topology=topology)
    run.begin("a")
    run.take()
    assert run.owner == [1, 0, 1, 0, 0, 0]
    run.context.guard.audit(1)
    assert run.context.guard.held == 2  # the pruned ones; the absent ones are no holds
    run.begin("b")
    run.step()
    assert (run.weights[[1, 4]] == 0).all() and (run.weights[[3, 5]] != 0).all()


def test_its_state_goes_and_comes_back():
    run = Run(FIRST)
    assert run.method.state_dict() == ({}, {"phases": {}})
    run.begin("a")
    run.take()
    tensors, values = run.method.state_dict()
    assert tensors["owner"]["q.weight"].dtype == torch.float32  # as checkpoints keep them
    other = PackNet(PackNetConfig())
    other.check_state(tensors, values)
    other.load_state_dict(tensors, values)
    assert other.owner["q.weight"].equal(run.method.owner["q.weight"])
    assert other.phases == {"a": 0}
    other.load_state_dict({}, {"phases": {}})  # a rollback to before
    assert not other.owner and not other.phases


@pytest.mark.parametrize(
    ("tensors", "phases", "said"),
    [
        ((), {"a": 0}, "phases: 1, with 0 owners"),
        (("owner",), {}, "phases: 0, with 1 owners"),
        (("owner",), {"a": -1}, "phases: 'a' has -1, which is no phase"),
        (("owner",), {"a": True}, "phases: 'a' has True"),
        (("owner",), [], "phases: \\[\\] is no dict"),
    ],
)
def test_a_state_that_it_never_gives_is_refused(tensors, phases, said):
    with pytest.raises(ValueError, match=said):
        PackNet(PackNetConfig()).check_state(tensors, {"phases": phases})


def test_without_its_state_it_does_not_go_on():
    run = Run(FIRST)
    run.method.began_anew(run.context.at(5, phase=0, stage="train"))
    for place in ({"phase": 1, "stage": "train"}, {"phase": 0, "stage": "retrain"}):
        with pytest.raises(UserError, match="Resume it without --weights_only"):
            run.method.began_anew(run.context.at(10, **place))


@pytest.mark.parametrize(
    ("options", "facts", "said"),
    [
        ({}, {"joint": True}, "phases.joint trains all at once"),
        ({}, {"role": "update"}, "topology.role=update keeps weights"),
        ({}, {"rewires": True, "others": ("set",)}, "moves live weights"),
        ({}, {"freezing": ("o_lora",)}, "o_lora freezes weights too"),
        ({"prune": (0.5, 0.0)}, {}, "prune has 2 shares for 3 phases"),
    ],
)
def test_runs_that_it_cannot_be_part_of(options, facts, said):
    with pytest.raises(ValueError, match=said):
        PackNetConfig(**options).check(RunFacts(**{**vars(FACTS), **facts}))
    PackNetConfig().check(FACTS)


@pytest.mark.parametrize("prune", [1.0, -0.1, (0.5, 1.5), float("nan")])
def test_shares_out_of_bounds(prune):
    with pytest.raises(ValueError, match="prune must be >= 0 and < 1"):
        PackNetConfig(prune=prune)


def test_a_layer_too_small_for_the_phases_is_named_with_its_numbers():
    config = PackNetConfig()
    config.check_layers({"q": 10, "down": 1000}, 4, ())
    with pytest.raises(ValueError) as caught:
        config.check_layers({"down": 1000, "q": 10}, 5, ())
    assert str(caught.value).startswith(
        "prune=0.5: q has 10 live weights, of which phase 4 of 5 would get none (free before each "
        "phase: 10, 5, 2, 1, 0)."
    )
    PackNetConfig(prune=(0.5, 0.0)).check_layers({"q": 2}, 2, ())
    with pytest.raises(ValueError, match="phase 2 of 3"):
        PackNetConfig(prune=(0.5, 0.0, 0.0)).check_layers({"q": 2}, 3, ())
