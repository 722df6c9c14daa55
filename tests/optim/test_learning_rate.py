"""Learning-rate curves at the steps that matter."""

import pytest

from sparsecl.optim.config import OptimizerConfig, ScheduleConfig
from sparsecl.optim.learning_rate import lr_factor


def curve(config: ScheduleConfig, phase: int = 0, num_steps: int = 11) -> list[float]:
    return [
        round(lr_factor(config, phase=phase, step=step, num_steps=num_steps), 6)
        for step in range(num_steps)
    ]


def test_by_hand():
    assert curve(ScheduleConfig(kind="constant", warmup=0.0)) == [1.0] * 11
    linear = curve(ScheduleConfig(kind="linear", warmup=0.0, final=0.0))
    assert linear == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    cosine = curve(ScheduleConfig(kind="cosine", warmup=0.0, final=0.1))
    assert cosine[0] == 1.0
    assert cosine[5] == 0.55
    assert cosine[10] == 0.1


def test_warm_up_rises_to_the_peak_in_every_phase_or_in_the_first_only():
    config = ScheduleConfig(kind="cosine", warmup=0.36)
    assert curve(config)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert curve(config, phase=1) == curve(config)
    once = ScheduleConfig(kind="cosine", warmup=0.36, rewarm=False)
    assert curve(once) == curve(config)
    assert curve(once, phase=1)[0] == 1.0


def test_later_phases_may_have_a_lower_rate():
    config = ScheduleConfig(later=0.25)
    assert curve(config) == curve(ScheduleConfig())
    quarter = [0.25 * factor for factor in curve(ScheduleConfig())]
    assert curve(config, phase=3) == pytest.approx(quarter, abs=1e-6)
    with pytest.raises(ValueError, match="later must be > 0 and <= 1"):
        ScheduleConfig(later=0.0)


@pytest.mark.parametrize("num_steps", [1, 5, 20, 29, 100])
def test_a_warm_up_starts_near_zero_however_short_the_phase(num_steps):
    assert curve(ScheduleConfig(), num_steps=num_steps)[0] <= 0.25
    assert curve(ScheduleConfig(warmup=0.0), num_steps=num_steps)[0] == 1.0


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_always_positive_and_at_most_one(kind, num_steps, warmup):
    factors = curve(ScheduleConfig(kind=kind, warmup=warmup), num_steps=num_steps)
    assert all(0.0 < factor <= 1.0 for factor in factors)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, "lr must be > 0, got 0.0"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"clip": -1.0}, "clip must be >= 0, got -1.0"),
    ],
)
def test_ranges(values, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**values)
