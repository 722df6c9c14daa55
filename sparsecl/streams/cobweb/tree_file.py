"""A Cobweb tree as a safetensors file. What is read goes on as what was written."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sparsecl.errors import DataError, MissingInputError
from sparsecl.files import atomic_open
from sparsecl.streams.cobweb.concepts import LABEL_SIGNS, LabelTerm
from sparsecl.streams.cobweb.tree import CobwebTree

_FORMAT = "cobweb tree 1"
# N = nodes level by level, so that a parent comes before its children; P = pixels, C = classes
_SHAPES = {"parents": "N", "counts": "N", "means": "NP", "squares": "NP", "labels": "NC"}


def tree_tensors(tree: CobwebTree) -> dict[str, np.ndarray]:
    """All that a tree is, but for its label_term."""
    nodes = list(tree.nodes())
    place = {node: index for index, node in enumerate(nodes)}
    parents = [place[tree.parents[node]] if node in tree.parents else -1 for node in nodes]
    concepts = tree.concepts
    return {
        "parents": np.asarray(parents, dtype=np.int64),
        "counts": concepts.counts[nodes],
        "means": concepts.means[nodes],
        "squares": concepts.squares[nodes],
        "labels": concepts.labels[nodes],
        "prior_variance": np.asarray(concepts.prior_variance),
    }


def save_tree(tree: CobwebTree, path: Path) -> None:
    """Write a tree, whole or not at all."""
    metadata = {"format": _FORMAT, "label_term": tree.concepts.label_term}
    with atomic_open(path, "wb") as file:
        file.write(save(tree_tensors(tree), metadata))


def load_tree(path: Path) -> CobwebTree:
    """Read what `save_tree` wrote.

    Raises:
        MissingInputError: there is no such file.
        DataError: it holds no such tree.
    """
    if not Path(path).is_file():
        raise MissingInputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: no readable safetensors file ({error})") from None
    term = metadata.get("label_term")
    if metadata.get("format") != _FORMAT or term not in LABEL_SIGNS:
        raise DataError(f"{path}: holds no {_FORMAT!r}")
    return tree_of(tensors, term, path)


def tree_of(tensors: dict[str, np.ndarray], term: LabelTerm, path: Path) -> CobwebTree:
    """The tree of `tree_tensors`.

    Raises:
        DataError: they are of no tree; `path` is where they were found.
    """
    _check(path, tensors)
    num_pixels, num_classes = tensors["means"].shape[1], tensors["labels"].shape[1]
    variance = float(tensors["prior_variance"])
    tree = CobwebTree(num_pixels, num_classes, prior_variance=variance, label_term=term)
    concepts = tree.concepts
    for index, parent in enumerate(tensors["parents"].tolist()):
        node = concepts.take()  # rows are given out in order: node == index
        tree.children[node] = []
        if index:
            tree.children[parent].append(node)
            tree.parents[node] = parent
        else:
            tree.root = node
        for name in ("counts", "means", "squares", "labels"):
            getattr(concepts, name)[node] = tensors[name][index]
        concepts.refresh(node)
    return tree


def _check(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Raise DataError unless shapes, numbers and parents are those of a tree."""
    if set(tensors) != {*_SHAPES, "prior_variance"} or tensors["prior_variance"].shape != ():
        raise DataError(f"{path}: has other tensors than a tree: {', '.join(sorted(tensors))}")
    sizes: dict[str, int] = {}
    for name, letters in _SHAPES.items():
        shape = tensors[name].shape
        if len(shape) != len(letters) or any(
            sizes.setdefault(letter, size) != size
            for letter, size in zip(letters, shape, strict=True)
        ):
            raise DataError(f"{path}: {name} has the shape {list(shape)}")
        if not np.isfinite(tensors[name]).all():
            raise DataError(f"{path}: {name} is not finite")
    parents = tensors["parents"]
    right = (parents >= 0) & (parents < np.arange(len(parents)))
    if len(parents) and (parents[0] != -1 or not right[1:].all()):
        raise DataError(f"{path}: a node comes before its parent")
    if (tensors["counts"] <= 0).any() or (tensors["squares"] < 0).any():
        raise DataError(f"{path}: counts or squares that no images have")
