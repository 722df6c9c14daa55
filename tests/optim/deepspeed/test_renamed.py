"""A DeepSpeed that calls things otherwise is refused by name, never guessed at."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsecl.errors import UserError
from sparsecl.optim.deepspeed.known import VERSION
from sparsecl.optim.deepspeed.numbers import counters, set_counters
from sparsecl.optim.deepspeed.wrappers import WRAPPERS, Plain, find_wrapper
from sparsecl.optim.slices import Slices


def engine_with(wrapper: Any) -> Any:
    """What Slices asks an engine for."""
    module = torch.nn.Linear(2, 2)
    return SimpleNamespace(
        module=module,
        optimizer=wrapper,
        basic_optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        zero_optimization_stage=lambda: 1,
    )


def test_parameters_are_their_own_masters_only_where_nothing_wraps_the_optimizer():
    engine = engine_with(None)
    engine.optimizer = engine.basic_optimizer
    assert isinstance(find_wrapper(engine), Plain)
    assert all(item.stepped is item.param for item in Slices(engine))


def test_a_wrapper_of_another_name_is_refused():
    engine = engine_with(type("ShardedOptimizer", (), {})())
    with pytest.raises(UserError) as error:
        Slices(engine)
    assert "wrapped in a ShardedOptimizer" in str(error.value)
    assert f"pip install deepspeed=={VERSION}" in str(error.value)


@pytest.mark.parametrize("name", WRAPPERS)
def test_an_attribute_of_another_name_is_refused(name):
    with pytest.raises(UserError, match=f"its ({name}|Parameter) has no \\w+, so weights cannot"):
        Slices(engine_with(type(name, (), {})()))


def test_a_counter_of_another_name_is_refused_and_not_made():
    engine = SimpleNamespace(global_steps=3, global_samples=24)
    with pytest.raises(UserError, match="has no skipped_steps"):
        counters(engine)
    with pytest.raises(UserError, match="has no skipped_steps"):
        set_counters(engine, {"global_steps": 1, "global_samples": 8, "skipped_steps": 0})
    assert not hasattr(engine, "skipped_steps")
