"""Predictions of a Cobweb tree: a best-first search, and the labels of what it has visited.

The priority of a node is log p(image | node) + the log probability of the way to it, which is a
product of softmaxes over siblings of log p(image | c) + log n_c. The answer is the mean of the
visited nodes' label frequencies, weighted by exp(priority). Source: Teachable-AI-Lab/cobweb.
Differs: a class that a node has not seen has frequency 0 there, not 1e-8; of equal priorities the
node of the higher level and then the older one comes first, where the code draws lots.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from sparsecl.errors import UserError
from sparsecl.streams.cobweb.concepts import Floats
from sparsecl.streams.cobweb.tree import CobwebTree

_CHUNK = 256  # images whose densities under all nodes are in memory at once


def predict(tree: CobwebTree, images: Floats, *, budget: int) -> Floats:
    """Probabilities of the labels [B, C] of images [B, P]; at most `budget` nodes are visited.

    Raises:
        UserError: the tree has seen no image, or the budget is below 1.
    """
    if tree.root is None:
        raise UserError("a tree that has seen no image predicts nothing")
    if budget < 1:
        raise UserError(f"budget must be >= 1 node, got {budget}")
    nodes = list(tree.nodes())
    place = {node: index for index, node in enumerate(nodes)}
    kids = [np.asarray([place[kid] for kid in tree.children[node]], dtype=int) for node in nodes]
    counts = tree.concepts.counts[nodes]
    frequencies = tree.concepts.labels[nodes] / counts[:, None]
    answer = np.zeros((len(images), tree.num_classes))
    for begin in range(0, len(images), _CHUNK):
        chunk = np.asarray(images[begin : begin + _CHUNK], dtype=np.float64)
        for row, densities in enumerate(tree.concepts.log_densities(nodes, chunk), begin):
            visited, priorities = best_first(densities, kids, np.log(counts), budget)
            weights = np.exp(priorities - priorities.max())
            answer[row] = weights @ frequencies[visited] / weights.sum()
    return answer


def best_first(
    densities: Floats, kids: list[NDArray[np.int_]], log_counts: Floats, budget: int
) -> tuple[list[int], Floats]:
    """Nodes in the order of their visit, at most `budget`, and their priorities.

    Args:
        densities: log p(image | node) [N]; node 0 is the root.
        kids: children of each node.
        log_counts: log n [N].
    """
    queue = [(-densities[0], 0, 0.0)]  # (-priority, node, log probability of the way to it)
    visited: list[int] = []
    priorities: list[float] = []
    while queue and len(visited) < budget:
        negative, node, way = heapq.heappop(queue)
        visited.append(node)
        priorities.append(-negative)
        if len(kids[node]):
            own = densities[kids[node]]
            joint = own + log_counts[kids[node]]
            ways = way + joint - np.logaddexp.reduce(joint)
            for kid, kid_way, density in zip(kids[node], ways, own, strict=True):
                heapq.heappush(queue, (-(density + kid_way), int(kid), float(kid_way)))
    return visited, np.asarray(priorities)
