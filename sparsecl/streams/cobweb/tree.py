"""Cobweb/4V: a tree of concepts that grows image by image. A comparison outside the transformer.

An image goes down from the root. At each node that operation is done after which the children say
most about the images of the node:

    utility = 1/K sum_c n_c/n [h(parent) - h(c)]          K children, h = entropy (concepts.py)

    best   the image goes down to the child whose own term gains most
    new    it becomes a child of its own
    merge  the two best children get a parent of their own, to which it goes (of three or more)
    split  the best child gives way to its children; scored without the image, which stays here

At a leaf it is counted in if the leaf is its equal, else the two become siblings. Nothing has a
gradient, and an image changes only the statistics of the nodes on its way.

Barari, Kim & MacLellan 2025, https://arxiv.org/abs/2510.23756; Cobweb/4V: 2024,
https://arxiv.org/abs/2402.16933; rules as in the public code, Teachable-AI-Lab/cobweb @ 8b2f5b5.
That code scores a child by KL(child || parent). Since children share out all images of their
parent, utilities and the order of the children are the same with entropies, which cost less.
Differs: of equal utilities the first in the list above wins, of equal children the larger and then
the older one, where the code draws lots; so equal images give equal trees.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsecl.errors import UserError
from sparsecl.streams.cobweb.concepts import (
    LABEL_SIGNS,
    PRIOR_VARIANCE,
    Concepts,
    Floats,
    LabelTerm,
)

Operation = Literal["best", "new", "merge", "split"]

EXACT = 1e-5
"""How far an image may be from the mean of a leaf, in any pixel, and still be its equal."""


@dataclass(frozen=True)
class Choice:
    """What is to be done with an image at one node."""

    operation: Operation
    utilities: dict[Operation, float]
    """In nats, of the operations that are possible there."""
    best: int
    """The child whose own term gains most."""
    second: int
    """The one after it."""


class CobwebTree:
    """Concepts over images of `num_pixels` numbers, with labels below `num_classes`.

    Args:
        prior_variance: v0, added to the variance of every pixel; belongs to pixels in [0, 1].
        label_term: how labels enter the entropy of a node. In the public code their entropy has the
            sign that rewards children of mixed labels (`released`); `corrected` turns it round,
            `unused` leaves them to predictions. Which one was meant is unverified.

    Raises:
        UserError: prior_variance is not above 0, or there is no such term.
    """

    def __init__(
        self,
        num_pixels: int,
        num_classes: int,
        *,
        prior_variance: float = PRIOR_VARIANCE,
        label_term: LabelTerm = "released",
    ) -> None:
        if not 0.0 < prior_variance < np.inf:
            raise UserError(f"prior_variance must be above 0, got {prior_variance}")
        if label_term not in LABEL_SIGNS:
            raise UserError(f"label_term must be one of {', '.join(LABEL_SIGNS)}, got {label_term}")
        self.num_pixels, self.num_classes = num_pixels, num_classes
        self.concepts = Concepts(num_pixels, num_classes, prior_variance, label_term)
        self.root: int | None = None
        self.children: dict[int, list[int]] = {}
        """Row of a node -> rows of its children, oldest first; a leaf has none."""
        self.parents: dict[int, int] = {}
        """Row of a node -> row of its parent; the root has none."""

    def nodes(self) -> Iterator[int]:
        """All nodes level by level, children in the order of their parent's list."""
        queue = [] if self.root is None else [self.root]
        for node in queue:
            yield node
            queue += self.children[node]

    def learn(self, images: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
        """Add images [B, P] with labels [B], one after the other.

        Raises:
            UserError: shapes or labels do not fit the tree, or a pixel is not finite.
        """
        pixels, labels = np.asarray(images, dtype=np.float64), np.asarray(labels)
        if pixels.shape != (len(labels), self.num_pixels):
            raise UserError(
                f"images must be [{len(labels)}, {self.num_pixels}], one for each label, "
                f"got {list(pixels.shape)}"
            )
        if not np.isfinite(pixels).all():
            raise UserError("images: a pixel is not finite")
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise UserError(
                f"labels must be in 0..{self.num_classes - 1}, got {labels.min()}..{labels.max()}"
            )
        for image, label in zip(pixels, labels, strict=True):
            self.add(image, int(label))

    def add(self, image: Floats, label: int) -> int:
        """Take in one image [P]; returns the leaf that stands for it now."""
        if self.root is None:
            self.root = self._leaf(image, label)
            return self.root
        here = self.root
        while self.children[here]:
            choice = self.choose(here, image, label)
            if choice.operation == "split":
                self._split(choice.best)
                continue
            self.concepts.absorb(here, image, label)
            if choice.operation == "new":
                return self._below(here, self._leaf(image, label))
            merge = choice.operation == "merge"
            here = self._group(choice.best, choice.second) if merge else choice.best
        if self._equals(here, image, label):
            self.concepts.absorb(here, image, label)
            return here
        above = self._group(here)
        self.concepts.absorb(above, image, label)
        return self._below(above, self._leaf(image, label))

    def choose(self, node: int, image: Floats, label: int) -> Choice:
        """The operation of largest utility at a node with children; changes nothing."""
        concepts, kids = self.concepts, self.children[node]
        n, h = concepts.counts[kids], concepts.entropies[kids]
        h_with = concepts.with_image(kids, image, label)
        # A child's own term n_c/n [h(parent) - h(c)] gains this, and what is the same for all.
        gains = n * h - (n + 1.0) * h_with
        first, second = np.lexsort((np.arange(len(kids)), -n, -gains))[:2]

        total = concepts.counts[node] + 1.0
        (parent,) = concepts.with_image([node], image, label)
        rest = float(n @ h - n[first] * h[first])  # the other children: sum of n_c h(c)
        best = rest + (n[first] + 1.0) * h_with[first]
        new = float(n @ h) + concepts.lone()
        utilities: dict[Operation, float] = {
            "best": float(parent - best / total) / len(kids),
            "new": float(parent - new / total) / (len(kids) + 1),
        }
        if len(kids) > 2:
            both = concepts.joint_with_image(kids[first], kids[second], image, label)
            merge = rest - n[second] * h[second] + (n[first] + n[second] + 1.0) * both
            utilities["merge"] = float(parent - merge / total) / (len(kids) - 1)
        if below := self.children[kids[first]]:
            split = rest + float(concepts.counts[below] @ concepts.entropies[below])
            without = float(concepts.entropies[node] - split / concepts.counts[node])
            utilities["split"] = without / (len(kids) - 1 + len(below))
        operation = max(utilities, key=lambda name: utilities[name])  # the first of equal ones
        return Choice(operation, utilities, kids[first], kids[second])

    def check(self) -> None:
        """Assert the laws of the tree: counts and labels of children sum to those of their parent,
        an inner node has two children or more, and every node but the root has its parent."""
        for node in self.nodes():
            kids, concepts = self.children[node], self.concepts
            assert concepts.labels[node].sum() == concepts.counts[node] > 0
            assert len(kids) != 1
            if kids:
                assert concepts.counts[kids].sum() == concepts.counts[node]
                assert (concepts.labels[kids].sum(0) == concepts.labels[node]).all()
            assert all(self.parents[kid] == node for kid in kids)

    def _leaf(self, image: Floats, label: int) -> int:
        leaf = self.concepts.take()
        self.children[leaf] = []
        self.concepts.absorb(leaf, image, label)
        return leaf

    def _below(self, parent: int, child: int) -> int:
        self.children[parent].append(child)
        self.parents[child] = parent
        return child

    def _group(self, *nodes: int) -> int:
        """A new node in the place of siblings, which become its children."""
        group = self.concepts.take()
        self.children[group] = []
        parent = self.parents.get(nodes[0])
        if parent is None:
            self.root = group
        else:
            self.children[parent] = [kid for kid in self.children[parent] if kid not in nodes]
            self._below(parent, group)
        for node in nodes:
            self.concepts.absorb_row(group, node)
            self._below(group, node)
        return group

    def _split(self, node: int) -> None:
        """The children of a node take its place."""
        parent = self.parents.pop(node)
        self.children[parent].remove(node)
        for kid in self.children.pop(node):
            self._below(parent, kid)
        self.concepts.give_back(node)

    def _equals(self, leaf: int, image: Floats, label: int) -> bool:
        concepts = self.concepts
        return bool(
            concepts.labels[leaf, label] == concepts.counts[leaf]
            and (concepts.squares[leaf] < EXACT * concepts.counts[leaf]).all()
            and (np.abs(image - concepts.means[leaf]) < EXACT).all()
        )
