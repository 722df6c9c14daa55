"""CobwebNN: mixtures by hand, who is trained, and that equal seeds give equal networks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecl.errors import DataError, MissingInputError, UserError
from sparsecl.streams.cobweb.network import CobwebNetwork, parents
from sparsecl.streams.cobweb.network_file import load_network, save_network
from tests.streams.cobweb.test_tree import blobs


def test_a_parent_by_hand() -> None:
    means, variances = torch.tensor([[0.0], [2.0]]), torch.ones(2, 1)
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mean, variance, mixed = parents(means, variances, labels, torch.zeros(1))
    assert (mean.item(), variance.item()) == (1.0, 2.0)
    assert mixed.tolist() == [[0.5, 0.5]]
    # a = 3/4: mean 1/2, variance 1 + 3/4 * 1/4 + 1/4 * 9/4
    mean, variance, _ = parents(means, variances, labels, torch.tensor([np.log(3.0)]))
    assert (mean.item(), variance.item()) == pytest.approx((0.5, 1.75))


def test_the_root_is_the_mixture_of_all_leaves() -> None:
    network = CobwebNetwork(3, 4, levels=3, width=2)
    with torch.no_grad():
        for scores in network.mixing:
            scores.normal_(generator=torch.Generator().manual_seed(0))
    levels = network.levels()
    assert [len(means) for means, _, _ in levels] == [8, 4, 2, 1]
    assert sum(scores.numel() for scores in network.mixing) == 7
    weights = torch.ones(1)
    for scores in network.mixing:
        a = torch.sigmoid(scores)
        weights = (weights[:, None] * torch.stack((a, 1 - a), 1)).flatten()
    leaves, variances, _ = levels[0]
    mean = weights @ leaves
    variance = weights @ (variances + (leaves - mean) ** 2)
    torch.testing.assert_close(levels[-1][0][0], mean)
    torch.testing.assert_close(levels[-1][1][0], variance)


@pytest.mark.parametrize("sparse", [False, True])
def test_which_parts_of_the_tree_a_step_changes(sparse: bool) -> None:
    network = CobwebNetwork(3, 3, levels=3, width=2, sparse=sparse, epochs=1, batch=10)
    image = np.array([[0.2, 0.9, 0.4]])
    network.learn(blobs(0, 30)[0], blobs(0, 30)[1])  # so that Adam has moments everywhere
    with torch.no_grad():
        codes = network.encoder(torch.from_numpy(image).float())
        leaf = int(torch.cdist(codes, network.means).argmin())
    before = [value.detach().clone() for value in network.parameters()]
    network.learn(image, np.array([1]))
    changed = {
        name: {int(row) for row in (old != new).reshape(len(old), -1).any(1).nonzero()}
        for (name, new), old in zip(network.named_parameters(), before, strict=True)
    }
    if not sparse:
        assert changed["means"] == changed["logits"] == set(range(8))
        return
    assert changed["means"] == changed["log_variances"] == changed["logits"] == {leaf}
    # The root, and one node of each level between it and the leaf.
    assert [changed[f"mixing.{k}"] for k in range(3)] == [{0}, {leaf // 4}, {leaf // 2}]
    assert changed["encoder.0.weight"] and changed["decoder.0.weight"]


@pytest.mark.parametrize("sparse", [False, True])
def test_equal_seeds_give_equal_networks(sparse: bool) -> None:
    images, labels = blobs(0, 20)

    def trained(seed: int) -> np.ndarray:
        network = CobwebNetwork(3, 3, levels=2, width=4, sparse=sparse, epochs=1, seed=seed)
        network.learn(images, labels)
        return network.predict(images)

    torch.manual_seed(0)
    first = trained(1)
    torch.manual_seed(5)  # what else draws numbers does not matter
    assert (trained(1) == first).all() and (trained(2) != first).any()
    np.testing.assert_allclose(first.sum(1), 1.0, atol=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
def test_it_learns_to_tell_classes_apart(sparse: bool) -> None:
    labels = np.arange(60) % 3
    images = np.eye(3)[labels] + 0.1 * np.random.default_rng(0).normal(size=(60, 3))
    network = CobwebNetwork(
        3, 3, levels=3, width=4, sparse=sparse, lr=0.01, epochs=15, batch=10, seed=1
    )
    network.learn(images, labels)
    assert (network.predict(images).argmax(1) == labels).mean() > 0.9


def test_a_network_that_was_saved_goes_on_as_if_it_had_stayed(tmp_path: Path) -> None:
    images, labels = blobs(0, 20)
    stayed, back = (CobwebNetwork(3, 3, levels=2, width=4, epochs=1, seed=s) for s in (1, 1))
    path = tmp_path / "network.safetensors"
    stayed.learn(images, labels)
    save_network(stayed, path)
    load_network(back, path)
    for network in (stayed, back):
        network.learn(images, labels)
    assert (stayed.predict(images) == back.predict(images)).all()
    with pytest.raises(DataError, match="of other sizes: .* does not fit"):
        load_network(CobwebNetwork(3, 3, levels=3, width=4), path)
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(DataError, match="no readable safetensors"):
        load_network(back, path)
    with pytest.raises(MissingInputError, match="no such file"):
        load_network(back, tmp_path / "none.safetensors")


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(UserError, match="levels must be >= 1, got 0"):
        CobwebNetwork(3, 3, levels=0)
