"""Temperature, top-k and top-p by hand, on eight and fewer tokens."""

import numpy as np
import pytest

from sparsecl.model.choice import ChoiceConfig, probabilities, shaped

# Token 1 is the most likely one, then 3, 0 and 2.
LOGITS = np.log(np.array([0.15, 0.5, 0.1, 0.25], dtype=np.float32))


def chances(logits=LOGITS, **choice):
    return probabilities(shaped(logits, ChoiceConfig(**choice)))


def check(found, wanted):
    """Tokens that may not be drawn have no probability at all."""
    np.testing.assert_allclose(found, wanted, atol=1e-7)
    assert ((found == 0) == (np.array(wanted) == 0)).all()


def test_by_default_it_is_the_softmax():
    check(chances(), [0.15, 0.5, 0.1, 0.25])


def test_temperature_takes_powers():
    # p^2 / sum p^2, sum = 0.0225 + 0.25 + 0.01 + 0.0625 = 0.345
    check(chances(temperature=0.5), np.array([0.0225, 0.25, 0.01, 0.0625]) / 0.345)


@pytest.mark.parametrize(
    ("k", "wanted"),
    [
        (1, [0, 1, 0, 0]),
        (2, [0, 2 / 3, 0, 1 / 3]),
        (3, [1 / 6, 5 / 9, 0, 5 / 18]),
        (4, [0.15, 0.5, 0.1, 0.25]),
        (9, [0.15, 0.5, 0.1, 0.25]),
    ],
)
def test_top_k(k, wanted):
    check(chances(top_k=k), wanted)


@pytest.mark.parametrize(
    ("p", "wanted"),
    [
        (1e-9, [0, 1, 0, 0]),
        (0.49, [0, 1, 0, 0]),
        (0.51, [0, 2 / 3, 0, 1 / 3]),
        (0.74, [0, 2 / 3, 0, 1 / 3]),
        (0.76, [1 / 6, 5 / 9, 0, 5 / 18]),
        (0.91, [0.15, 0.5, 0.1, 0.25]),
        (1.0, [0.15, 0.5, 0.1, 0.25]),
    ],
)
def test_top_p(p, wanted):
    check(chances(top_p=p), wanted)


def test_a_sum_that_is_exactly_p_is_enough():
    check(chances(np.zeros(4, dtype=np.float32), top_p=0.5), [0.5, 0.5, 0, 0])


def test_top_p_is_of_what_top_k_and_temperature_left():
    # Of the two most likely ones the first has 2/3; alone it would have 1/2.
    check(chances(top_k=2, top_p=0.6), [0, 1, 0, 0])
    # Squared, it has 0.25 / 0.345 = 0.72.
    check(chances(temperature=0.5, top_p=0.7), [0, 1, 0, 0])


def test_on_a_tie_the_lower_id_stays():
    tied = np.array([1.0, 2.0, 2.0, 2.0, 1.0], dtype=np.float32)
    check(chances(tied, top_k=2), [0, 0.5, 0.5, 0, 0])
    check(chances(tied, temperature=0.0), [0, 1, 0, 0, 0])


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-30])
def test_cold_is_the_most_likely_token(temperature):
    check(chances(temperature=temperature), [0, 1, 0, 0])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"temperature": -0.1}, "temperature must be >= 0 and finite, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be >= 0 and finite, got nan"),
        ({"temperature": float("inf")}, "temperature must be >= 0 and finite, got inf"),
        ({"top_k": 0}, "top_k must be >= 1 token, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"top_p": float("nan")}, r"top_p must be in \(0, 1\], got nan"),
    ],
)
def test_what_is_no_choice_is_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        ChoiceConfig(**choice)
