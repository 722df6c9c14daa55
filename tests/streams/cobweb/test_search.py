"""Predictions by hand, and against a search that visits everything; files."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.streams.cobweb.search import predict
from sparsecl.streams.cobweb.tree import CobwebTree
from sparsecl.streams.cobweb.tree_file import load_tree, save_tree
from tests.streams.cobweb.test_tree import blobs, by_hand, shape


def test_the_way_to_a_child_by_hand() -> None:
    tree = by_hand()
    root = tree.root
    assert root is not None
    kids = sorted(tree.children[root], key=lambda kid: tree.concepts.means[kid, 0])
    own = tree.concepts.log_densities(kids, np.array([[1.0]]))[0]
    ways = own + np.log(0.5) - np.logaddexp.reduce(own + np.log(0.5))
    assert ways == pytest.approx((0.0, -68.3179), abs=1e-4)


@pytest.mark.parametrize("budget", [1, 4, 1000])
def test_answers_are_those_of_a_plain_search(budget: int) -> None:
    images, labels = blobs(3, 40)
    tree = CobwebTree(3, 3)
    tree.learn(images, labels)
    probes, _ = blobs(4, 10)
    answers = predict(tree, probes, budget=budget)
    np.testing.assert_allclose(answers.sum(1), 1.0)
    for probe, answer in zip(probes, answers, strict=True):
        np.testing.assert_allclose(answer, plain_search(tree, probe, budget), atol=1e-9)


def plain_search(tree, probe, budget):
    """The frontier as a list that is sorted anew before each visit."""
    concepts = tree.concepts

    def density(node):
        variance = concepts.squares[node] / concepts.counts[node] + concepts.prior_variance
        square = (probe - concepts.means[node]) ** 2 / variance
        return -0.5 * (np.log(2 * np.pi * variance) + square).sum()

    frontier, total, mass = [(density(tree.root), tree.root, 0.0)], np.zeros(3), 0.0
    for _ in range(budget):
        if not frontier:
            break
        frontier.sort(key=lambda entry: entry[0])
        priority, node, way = frontier.pop()
        weight = np.exp(priority)
        mass += weight
        total += weight * concepts.labels[node] / concepts.counts[node]
        joint = {kid: np.exp(density(kid)) * concepts.counts[kid] for kid in tree.children[node]}
        for kid, share in joint.items():
            there = way + np.log(share / sum(joint.values()))
            frontier.append((density(kid) + there, kid, there))
    return total / mass


def test_a_search_needs_images_and_a_budget() -> None:
    with pytest.raises(UserError, match="has seen no image"):
        predict(CobwebTree(1, 1), np.zeros((1, 1)), budget=1)
    with pytest.raises(UserError, match="budget must be >= 1 node, got 0"):
        predict(by_hand(), np.zeros((1, 1)), budget=0)


def test_a_tree_that_was_saved_goes_on_as_if_it_had_stayed(tmp_path: Path) -> None:
    images, labels = blobs(5, 80)
    stayed = CobwebTree(3, 3, prior_variance=0.01, label_term="corrected")
    stayed.learn(images[:50], labels[:50])
    save_tree(stayed, tmp_path / "tree.safetensors")
    back = load_tree(tmp_path / "tree.safetensors")
    for tree in (stayed, back):
        tree.learn(images[50:], labels[50:])
        tree.check()
    assert shape(back, back.root) == shape(stayed, stayed.root)
    assert (predict(back, images, budget=20) == predict(stayed, images, budget=20)).all()
    save_tree(CobwebTree(2, 2), tmp_path / "empty.safetensors")
    assert load_tree(tmp_path / "empty.safetensors").root is None


def test_files_that_hold_no_tree_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tree.safetensors"
    with pytest.raises(MissingInputError, match="no such file"):
        load_tree(path)
    path.write_bytes(b"\x80\x04N.")  # a pickle of None
    with pytest.raises(DataError, match="no readable safetensors"):
        load_tree(path)
    save_file({"x": np.zeros(2)}, path)
    with pytest.raises(DataError, match="holds no 'cobweb tree 1'"):
        load_tree(path)
    good = {
        "parents": np.array([-1, 0, 0]),
        "counts": np.array([2.0, 1, 1]),
        "means": np.zeros((3, 1)),
        "squares": np.zeros((3, 1)),
        "labels": np.ones((3, 1)),
        "prior_variance": np.array(0.1),
    }
    meta = {"format": "cobweb tree 1", "label_term": "unused"}
    save_file(good, path, meta)
    assert load_tree(path).children[0] == [1, 2]
    for change, message in (
        ({"parents": np.array([-1, 2, 1])}, "a node comes before its parent"),
        ({"means": np.zeros((2, 1))}, r"means has the shape \[2, 1\]"),
        ({"means": np.full((3, 1), np.nan)}, "means is not finite"),
        ({"squares": np.full((3, 1), -1.0)}, "that no images have"),
    ):
        save_file({**good, **change}, path, meta)
        with pytest.raises(DataError, match=message):
            load_tree(path)
