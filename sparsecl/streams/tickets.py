"""Lottery tickets of networks that have learned many tasks: are there fewer once they learn less?

Networks learn n tasks, as a run does, with its methods. Then each n is given the same task, which
none has seen, by iterative magnitude pruning (Frankle & Carbin 2019, arXiv 1803.03635): learn it,
remove the share of the weights that are least then, rewind the others to what they were when the
task began, and again. A mask is judged by the accuracy with which the task is learned from there;
beside it stands a random mask with as many weights in each layer, and the same weights on it.

Our own reading: the plasticity papers have no tickets. The task is that behind the largest n, so
networks differ in nothing but what they have learned before. All hidden layers are pruned together,
the layer that gives the logits and biases stay. Optimizers begin anew with every mask, and methods
have no part in it: what they have kept alive shows in the weights that they leave. A mask was found
on the images that it is then judged by, so online accuracy is not held out: a ticket may beat the
whole network for what the mask knows. What compares is one n with another, at equal density.

N = networks of a pack, R = rounds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsecl import dist, seeding
from sparsecl.errors import UserError
from sparsecl.streams.config import PanelConfig, StreamRunConfig
from sparsecl.streams.image_pairs import ImagePairs, accuracy_after, zero_head
from sparsecl.streams.images import Images
from sparsecl.streams.loop import CHUNK, STREAMS, Pack, build_optimizer
from sparsecl.streams.models import Networks
from sparsecl.topology.build import build_topologies
from sparsecl.topology.layer import LayerTopology
from sparsecl.topology.sampling import choose_cells
from sparsecl.topology.ticket import survivors

Masks = dict[str, NDArray[np.bool_]]
"""Layer -> what lives, [N, O, I]."""

Weights = dict[str, Tensor]
"""Parameter -> its values, [N, ...]."""


def check(config: StreamRunConfig, after: Sequence[int], rounds: int, share: float) -> None:
    """Raises UserError for what has no tickets here."""
    if config.stream.kind == "class_incremental" or not config.learner.num_hidden:
        raise UserError(
            f"stream.kind={config.stream.kind}, learner.kind={config.learner.kind}: tickets are of "
            "hidden layers of mlp, on the streams that it learns task by task"
        )
    if config.learner.norm != "none":
        raise UserError(f"learner.norm={config.learner.norm}: tickets take networks without one")
    moving = [name for name, block in config.methods.used().items() if block.rewires]
    if moving:
        raise UserError(f"methods.{moving[0]}: tickets are of the graph that a network began with")
    if not after or min(after) < 0 or len(set(after)) < len(after):
        raise UserError(f"--after {list(after)}: numbers of tasks >= 0, each once")
    if rounds < 1 or not 0.0 < share < 1.0:
        raise UserError(f"--rounds {rounds} must be >= 1, --share {share:g} between 0 and 1")


def tickets(
    config: StreamRunConfig,
    images: Images,
    *,
    after: Sequence[int],
    rounds: int = 10,
    share: float = 0.2,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Accuracy of tickets and of random masks by what was learned before.

    Args:
        config: of the run; stream.tasks does not count.
        after: numbers of tasks that are learned first.
        share: of the live weights that a round removes.
        say: is told what was done, line by line.

    Returns:
        JSON: `densities` [R + 1], of hidden weights over their cells; `after`, n -> `ticket` and
        `random` [seeds][R + 1], of which the first is the whole network; and what was asked for.
    """
    check(config, after, rounds, share)
    probe = max(after)
    stream = replace(config.stream, tasks=max(probe, 1))
    asked = replace(config, stream=stream, panel=PanelConfig(samples=1, every=0))
    found: dict[int, dict[str, list[Any]]] = {n: {"ticket": [], "random": []} for n in after}
    densities: list[list[float]] = []
    for number in range(len(asked.packs)):
        for n, weights in begun(asked, images, number, after):
            one = Prober(asked, images, asked.packs[number], probe, weights)
            made = one.prune(rounds, share, names=("after", n))
            densities += made.pop("densities")
            for name, rows in made.items():
                found[n][name] += rows
            left = {name: np.mean(rows, axis=0)[-1] for name, rows in made.items()}
            say(f"after {n} tasks, seeds {asked.packs[number]}: at density {densities[-1][-1]:.3f} "
                f"ticket {left['ticket']:.3f}, random {left['random']:.3f}")  # fmt: skip
    return {
        "name": config.name,
        "stream": config.stream.kind,
        "measure": "accuracy_after" if config.stream.kind == "image_pairs" else "online_accuracy",
        "seeds": [seed for seeds in asked.packs for seed in seeds],
        "probe_task": probe,
        "share": share,
        "densities": np.mean(densities, axis=0).tolist(),
        "after": {str(n): found[n] for n in sorted(found)},
    }


def begun(
    config: StreamRunConfig, images: Images, number: int, after: Sequence[int]
) -> Iterator[tuple[int, Weights]]:
    """The weights of a pack when it has learned n tasks, for each n of `after` in their order."""
    pack = Pack(config, images, number)
    kept: dict[int, Weights] = {}

    def keep() -> Weights:
        size, shared = len(pack.seeds), len(pack.model.networks)
        return {
            name: param.detach().clone().view(size, *param.shape[shared:])
            for name, param in pack.model.named_parameters()
        }

    def record(kind: str, *, task: int, **figures: Any) -> None:
        if kind == "before" and task in after and task not in kept:
            kept[task] = keep()

    if max(after):
        pack.train(record, lambda pack: None, lambda *figures: None)
    else:
        kept[0] = keep()
    yield from sorted(kept.items())


class Prober:
    """Networks that learn one task again and again, on fewer and fewer weights."""

    def __init__(
        self,
        config: StreamRunConfig,
        images: Images,
        seeds: Sequence[int],
        task: int,
        weights: Weights,
    ) -> None:
        self.config, self.seeds, self.task, self.weights = config, seeds, task, weights
        self.shapes = config.learner.shapes(images.num_inputs, images.num_classes)
        kind, samples = STREAMS[config.stream.kind], config.stream.samples_per_task
        self.tasks = [kind(images, samples=samples, seed=seed) for seed in seeds]

    def prune(self, rounds: int, share: float, *, names: Sequence[str | int]) -> dict[str, Any]:
        """`densities`, `ticket` and `random`, each [N][R + 1]."""
        masks = self.graphs()
        cells = sum(mask[0].size for mask in masks.values())
        densities, ticket, random = [], [], []
        for number in range(rounds + 1):
            densities.append(sum(mask.sum((1, 2)) for mask in masks.values()) / cells)
            model, accuracy = self.learn(masks)
            ticket.append(accuracy)
            random.append(
                self.learn(self.drawn(masks, (*names, number)))[1] if number else accuracy
            )
            if number < rounds:
                masks = fewer(model, masks, share)
        return {
            "densities": np.transpose(densities).tolist(),
            "ticket": np.transpose(ticket).tolist(),
            "random": np.transpose(random).tolist(),
        }

    def graphs(self) -> Masks:
        """What lives in the hidden layers of networks that nobody has pruned."""
        hidden = self.shapes[:-1]
        each = [build_topologies(self.config.topology, hidden, seed=seed) for seed in self.seeds]
        found = {}
        for shape in hidden:
            full = np.ones((shape.out_features, shape.in_features), dtype=bool)
            given = [graphs[shape.name].mask() if shape.name in graphs else full for graphs in each]
            found[shape.name] = np.stack(given)
        return found

    def drawn(self, masks: Masks, names: Sequence[str | int]) -> Masks:
        """Random masks within the graphs, with as many weights in each layer."""
        found = {}
        for layer, graph in self.graphs().items():
            found[layer] = np.zeros_like(graph)
            for k, seed in enumerate(self.seeds):
                rng = seeding.stream(seed, "tickets", *names, layer)
                live = np.flatnonzero(graph[k])
                chosen = choose_cells(live.size, int(masks[layer][k].sum()), rng)
                found[layer][k].flat[live[chosen]] = True
        return found

    def learn(self, masks: Masks) -> tuple[Networks, NDArray[np.float64]]:
        """Learn the task from the weights on these masks. Returns the networks, and the accuracy
        of each, [N]."""
        graphs = [
            {name: LayerTopology.from_mask(name, mask[k]) for name, mask in masks.items()}
            for k in range(len(self.seeds))
        ]
        activation = self.config.learner.activation
        model = Networks(self.shapes, self.seeds, graphs, activation=activation)
        with torch.no_grad():
            for name, param in model.named_parameters():
                param.copy_(self.weights[name])
            for name, dead in model.masks().items():
                model.get_parameter(name).masked_fill_(dead, 0.0)
        model.to(dist.device())
        pairs = [tasks for tasks in self.tasks if isinstance(tasks, ImagePairs)]
        if pairs:
            zero_head(model)
        right = self._train(model)
        return model, np.array(accuracy_after(model, pairs, self.task)) if pairs else right

    def _train(self, model: Networks) -> NDArray[np.float64]:
        """Online accuracy, [N]."""
        stream, optimizer = self.config.stream, build_optimizer(self.config.optimizer, model)
        orders = [tasks.order(self.task) for tasks in self.tasks]
        right = torch.zeros(len(self.seeds), dtype=torch.int64, device=dist.device())
        size = CHUNK * stream.batch
        for first in range(0, stream.samples_per_task, size):
            read = [
                tasks.read(self.task, order[first : first + size])
                for tasks, order in zip(self.tasks, orders, strict=True)
            ]
            x, y = (torch.from_numpy(np.stack(part)) for part in zip(*read, strict=True))
            x, y = x.to(dist.device()), y.to(dist.device())
            for k in range(0, y.shape[1], stream.batch):
                part = slice(k, k + stream.batch)
                logits, _ = model.learn(x[:, part].contiguous(), y[:, part].contiguous())
                optimizer.step()
                right += (logits.argmax(-1) == y[:, part]).sum(1)
        return right.double().cpu().numpy() / stream.samples_per_task


def fewer(model: Networks, masks: Masks, share: float) -> Masks:
    """Without exactly round(share * live) weights of each network, the least of all layers."""
    found = {name: mask.copy() for name, mask in masks.items()}
    params = dict(model.named_parameters())
    for k in range(len(next(iter(masks.values())))):
        sizes = {
            name: params[f"{name}.weight"][k].detach().abs().cpu().numpy()[mask[k]].view(np.uint32)
            for name, mask in masks.items()
        }
        removed = round(share * sum(size.size for size in sizes.values()))
        kept = survivors(lambda sizes=sizes: iter(sizes.values()), removed)
        for mask, keep in zip(found.values(), kept, strict=True):
            mask[k][mask[k]] = keep
    return found


def table(found: Mapping[str, Any]) -> str:
    """A line for each density: ticket and random mask of each n, means over seeds."""
    after = found["after"]
    means = {
        (n, name): np.mean(rows, axis=0)
        for n, kinds in after.items()
        for name, rows in kinds.items()
    }
    heads = [f"after {n}" for n in after]
    lines = [f"{'density':>8}  " + "  ".join(f"{head:>16}" for head in heads)]
    lines.append(f"{'':>8}  " + "  ".join(f"{'ticket':>8}{'random':>8}" for _ in heads))
    for k, density in enumerate(found["densities"]):
        cells = "  ".join(
            f"{means[n, 'ticket'][k]:>8.4f}{means[n, 'random'][k]:>8.4f}" for n in after
        )
        lines.append(f"{density:>8.4f}  {cells}")
    num, words = len(found["seeds"]), found["measure"].replace("_", " ")
    lines.append(f"{words} on task {found['probe_task'] + 1}; {num} seed{'s' * (num > 1)}; "
                 "after: tasks that were learned before")  # fmt: skip
    return "\n".join(lines)
