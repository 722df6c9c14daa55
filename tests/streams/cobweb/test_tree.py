"""The tree by hand, against a plain one that keeps all images, and its laws."""

from collections import Counter

import numpy as np
import pytest

from sparsecl.errors import UserError
from sparsecl.streams.cobweb.concepts import PRIOR_VARIANCE, Concepts
from sparsecl.streams.cobweb.tree import CobwebTree
from tests.streams.cobweb.reference import insert, score


def by_hand() -> CobwebTree:
    """A root with children A (2 images at 0) and B (2 images at 4), one pixel, one label."""
    tree = CobwebTree(1, 1)
    for value in (0.0, 4.0, 0.0, 4.0):
        tree.add(np.array([value]), 0)
    return tree


def shape(tree: CobwebTree, node: int):
    kids = (shape(tree, kid) for kid in tree.children[node])
    return (int(tree.concepts.counts[node]), *kids)


def blobs(seed: int, num: int, num_pixels: int = 3, num_classes: int = 3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num)
    centres = rng.normal(size=(num_classes, num_pixels))
    images = centres[labels] + 0.3 * rng.normal(size=(num, num_pixels))
    images[5::7] = images[4:-1:7][: len(images[5::7])]  # some images are there twice
    labels[5::7] = labels[4:-1:7][: len(labels[5::7])]
    return images, labels


def test_utilities_by_hand() -> None:
    assert PRIOR_VARIANCE == pytest.approx(0.0585498, abs=5e-8)
    tree = by_hand()
    root = tree.root
    assert root is not None
    a, b = sorted(tree.children[root], key=lambda kid: tree.concepts.means[kid, 0])
    h = tree.concepts.entropies
    assert h[root] - (h[a] + h[b]) / 2 == pytest.approx(2 * 1.059676, abs=2e-6)

    choice = tree.choose(root, np.array([1.0]), 0)
    assert (choice.operation, choice.best, choice.second) == ("best", a, b)
    assert choice.utilities["best"] == pytest.approx(0.781624, abs=1e-6)
    assert choice.utilities["new"] == pytest.approx(0.677849, abs=1e-6)
    assert set(choice.utilities) == {"best", "new"}  # two children, both leaves

    tree.add(np.array([1.0]), 0)
    c = tree.concepts
    assert (c.counts[root], c.means[root, 0]) == (5, pytest.approx(1.8))
    assert c.squares[root, 0] == pytest.approx(16.8)
    (grown,) = [kid for kid in tree.children[root] if c.counts[kid] == 3]
    assert (c.means[grown, 0], c.squares[grown, 0]) == pytest.approx((1 / 3, 2 / 3))
    assert shape(tree, root) == (5, (2,), (3, (2,), (1,)))


@pytest.mark.parametrize(("term", "sign"), [("released", -1), ("corrected", 1), ("unused", 0)])
def test_the_tree_is_that_of_the_plain_reference(term, sign) -> None:
    seen = Counter()
    for seed in range(2):
        images, labels = blobs(seed, 45)
        tree, plain = CobwebTree(3, 3, label_term=term), None
        for image, label in zip(images, labels, strict=True):
            tree.add(image, int(label))
            plain, done = insert(plain, (image, int(label)), 3, sign)
            seen.update(done)
        assert plain is not None and tree.root is not None
        assert shape(tree, tree.root) == plain.shape()
        tree.check()
        for node, members in pairs(tree, tree.root, plain):
            images_there = np.array([image for image, _ in members])
            n = len(members)
            np.testing.assert_allclose(tree.concepts.means[node], images_there.mean(0), atol=1e-12)
            variance = tree.concepts.squares[node] / n
            np.testing.assert_allclose(variance, images_there.var(0), atol=1e-12)
    assert min(seen[name] for name in ("best", "new", "merge", "split")) > 0, seen


def pairs(tree, node, plain):
    """Nodes of the tree beside the images of the plain one's nodes."""
    yield node, plain.members
    for kid, other in zip(tree.children[node], plain.kids, strict=True):
        yield from pairs(tree, kid, other)


def test_entropies_and_kl_give_one_utility() -> None:
    images, labels = blobs(7, 40)
    tree = CobwebTree(3, 3)
    tree.learn(images, labels)
    root = tree.root
    assert root is not None
    plain = None
    for item in zip(images, labels, strict=True):
        plain, _ = insert(plain, item, 3, -1)
    assert plain is not None
    n, h = tree.concepts.counts, tree.concepts.entropies
    own = sum(n[kid] / n[root] * (h[root] - h[kid]) for kid in tree.children[root])
    kl = [len(kid.members) * score(kid.members, plain.members, 3, -1) for kid in plain.kids]
    assert own == pytest.approx(sum(kl) / len(plain.members), abs=1e-12)


def test_children_that_are_all_alike_say_nothing() -> None:
    concepts = Concepts(2, 2, PRIOR_VARIANCE, "corrected")
    parent, *children = rows = [concepts.take() for _ in range(3)]
    for child in children:
        concepts.absorb(child, np.array([0.2, 0.8]), 0)
        concepts.absorb(child, np.array([0.8, 0.2]), 1)
    concepts.absorb_row(parent, children[0])
    concepts.absorb_row(parent, children[1])
    assert concepts.counts[rows].tolist() == [4, 2, 2]
    np.testing.assert_allclose(concepts.entropies[children], concepts.entropies[parent], atol=1e-12)


def test_an_image_that_is_there_already_makes_no_node() -> None:
    tree = CobwebTree(4, 2)
    image = np.array([0.0, 0.0, 1.0, 0.5])
    for _ in range(5):
        tree.add(image, 1)
    assert list(tree.nodes()) == [tree.root] and tree.concepts.counts[tree.root] == 5
    tree.add(image, 0)  # the same image, another label
    assert shape(tree, tree.root) == (6, (5,), (1,))


def test_pixels_that_never_change_leave_everything_finite() -> None:
    images, labels = blobs(2, 50)
    wide = np.concatenate([np.zeros((50, 20)), images], axis=1)
    tree, narrow = CobwebTree(23, 3), CobwebTree(3, 3)
    tree.learn(wide, labels)
    narrow.learn(images, labels)
    assert np.isfinite(tree.concepts.entropies[list(tree.nodes())]).all()
    assert shape(tree, tree.root) == shape(narrow, narrow.root)


def test_what_does_not_fit_is_refused() -> None:
    tree = CobwebTree(2, 2)
    with pytest.raises(UserError, match=r"images must be \[1, 2\].*got \[1, 3\]"):
        tree.learn(np.zeros((1, 3)), np.array([0]))
    with pytest.raises(UserError, match=r"labels must be in 0\.\.1, got 0\.\.2"):
        tree.learn(np.zeros((2, 2)), np.array([0, 2]))
    with pytest.raises(UserError, match="not finite"):
        tree.learn(np.array([[0.0, np.nan]]), np.array([0]))
    with pytest.raises(UserError, match="prior_variance must be above 0, got 0"):
        CobwebTree(2, 2, prior_variance=0)
    assert tree.root is None
