"""Self-generated replay: what is written when, which rows a micro-batch gets, what is counted."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparsecl.errors import UserError
from sparsecl.methods.cl.config import ReplayConfig, SelfReplayConfig
from sparsecl.methods.cl.replay import Replay
from sparsecl.methods.cl.self_replay import SelfReplay
from sparsecl.methods.context import NO_PHASE
from sparsecl.methods.several import Methods
from tests.methods.plain import PlainContext, batch


class Author(PlainContext):
    """Writes [1000 + k, 1000 + k] as its sequence k, and 100 more for each time that it writes."""

    def __init__(self) -> None:
        weight = nn.Parameter(torch.zeros(1))
        super().__init__(weight, torch.optim.SGD([weight], lr=0.1))
        self.asked: list[tuple[int, float]] = []
        self.prompts: list[Any] = []

    def sample_sequences(
        self, prompts: Any, rng: np.random.Generator, *, temperature: float
    ) -> Any:
        self.asked.append((int(rng.integers(1 << 30)), temperature))
        self.prompts.append(prompts.tolist())
        return np.stack([np.arange(len(prompts)) + 900 + 100 * len(self.asked)] * 2, axis=1)


def method(**options: Any) -> SelfReplay:
    return SelfReplay(SelfReplayConfig(**{"sequences": 5, "share": 0.5, **options}))


def begin(own: SelfReplay, here: Author, phase: int) -> None:
    """The phases before have each read 3 steps of 4 sequences."""
    for over in range(len(own.prompts), phase):
        own.phase_end(here.at(3, phase=over))
    own.phase_start(here.at(0, phase=phase))


def step(own: SelfReplay, here: Any, number: int, *, phase: int, applied: bool = True) -> Any:
    here.at(number, phase=phase)
    rows = np.stack([np.arange(4)] * 2, axis=1)
    own.step_start(here)
    found = own.batch(here, batch(rows, phase, 4 * number))
    own.after_step(here.at(number + 1, phase=phase), applied=applied)
    return found


def test_the_first_phase_is_plain_training():
    own, here = method(), Author()
    own.phase_start(here)
    found = step(own, here, 0, phase=0)
    assert len(found.rows) == 4 and found.plain and not here.asked
    assert own.arrays() == {} and own.replayed_sequences == 0


def test_each_later_phase_trains_what_the_model_has_written_at_its_start():
    own, here = method(temperature=0.7), Author()
    for phase in (1, 2):
        begin(own, here, phase)
        seen = set()
        for number in range(6):
            found = step(own, here, number, phase=phase)
            assert found.plain and found.rows.dtype == np.int64
            assert found.rows[:4, 0].tolist() == [0, 1, 2, 3]
            assert found.origin[:4, 0].tolist() == [phase] * 4
            again = found.rows[4:]
            assert again.shape == (2, 2)
            assert found.origin[4:].tolist() == [
                [NO_PHASE, row - 900 - 100 * phase] for row in again[:, 0]
            ]
            seen |= set(again[:, 0].tolist())
        assert len(seen) > 2 and min(seen) >= 900 + 100 * phase
    assert [temperature for _, temperature in here.asked] == [0.7, 0.7]
    assert here.asked[0][0] != here.asked[1][0]  # another stream at each border


def test_written_sequences_count_as_replayed_and_in_no_phase():
    own, here = method(), Author()
    begin(own, here, 1)
    step(own, here, 0, phase=1)
    step(own, here, 1, phase=1, applied=False)
    assert own.replayed_sequences == 2
    replay = Replay(ReplayConfig())
    replay.num_replayed, replay.by_phase = 7, [3, 4]
    both = Methods([own, replay])
    assert both.replayed_by_phase == [3, 4] and both.replayed_sequences == 9
    assert own.config.replayed_share == 0.5 and own.config.reread_share == 0.0


def test_replay_beside_it_takes_written_rows_for_no_new_ones():
    own, here = method(), Author()
    begin(own, here, 1)
    replay = Replay(ReplayConfig(share=0.5))
    for name in ([0, 3], [0, 4]):
        replay.reservoir.insert(np.array([name]), np.random.default_rng(0))
    found = step(own, here, 0, phase=1)
    here.at(0, phase=1)
    replay.step_start(here)
    assert len(replay.batch(here, found).rows) == 4 + 2 + 2


def test_state_goes_and_comes_back_and_nothing_is_written_twice():
    own, here = method(), Author()
    begin(own, here, 1)
    step(own, here, 0, phase=1)
    values, arrays = json.loads(json.dumps(own.state_dict()[1])), own.arrays()
    other, there = method(), Author()
    other.check_state((), values)
    other.check_arrays(arrays, values)
    other.load_state_dict({}, values)
    other.load_arrays({key: value.clone() for key, value in arrays.items()})
    for number in (1, 2):
        one, two = (step(m, c, number, phase=1) for m, c in ((own, here), (other, there)))
        assert one.rows.tolist() == two.rows.tolist()
    assert other.state_dict() == own.state_dict() and not there.asked
    method().check_arrays({}, method().state_dict()[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": None}, "rows is missing"),
        ({"prompts": None}, "prompts is missing"),
        ({"more": torch.zeros(1)}, "more is not known"),
        ({"rows": torch.zeros(4, 2, dtype=torch.int32)}, r"rows: \[4, 2\] is not of 5 sequences"),
        ({"prompts": torch.zeros(2, 5, 1, dtype=torch.int32)}, r"prompts: \[2, 5, 1\] is not of"),
        ({"rows": torch.zeros(5, 2)}, "rows: no token ids"),
        ({"rows": torch.full((5, 2), -1, dtype=torch.int32)}, "rows: no token ids"),
    ],
)
def test_arrays_that_it_never_gave_are_refused(change, message):
    own, here = method(), Author()
    begin(own, here, 1)
    step(own, here, 0, phase=1)
    arrays = {key: value for key, value in {**own.arrays(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        own.check_arrays(arrays, own.state_dict()[1])


def test_a_sequence_goes_on_from_one_of_an_earlier_phase():
    """Sequence n of phase p is [100 p + n, 100 p + n]; phases take turns."""
    own, here = method(sequences=6), Author()
    begin(own, here, 2)
    (prompts,) = here.prompts
    assert [prompt // 100 for (prompt,) in prompts] == [0, 1, 0, 1, 0, 1]
    assert all(prompt % 100 < 12 for (prompt,) in prompts)
    assert own.prompts.shape == (2, 6, 1) and len(np.unique(own.prompts)) > 6
    own, here = method(prompt=0), Author()
    begin(own, here, 2)
    assert here.prompts == [[[]] * 5] and set(own.arrays()) == {"rows"}


@pytest.mark.parametrize("prompt", [0, 1])
def test_a_resume_at_a_border_writes_what_would_have_been_written(prompt):
    own, here = method(prompt=prompt), Author()
    begin(own, here, 1)
    own.phase_end(here.at(3, phase=1))
    values, arrays = json.loads(json.dumps(own.state_dict()[1])), own.arrays()
    other, there = method(prompt=prompt), Author()
    other.check_state((), values)
    other.check_arrays(arrays, values)
    other.load_state_dict({}, values)
    other.load_arrays(arrays)
    for one, context in ((own, here), (other, there)):
        one.phase_start(context.at(0, phase=2))
    assert (here.asked[-1], here.prompts[-1]) == (there.asked[-1], there.prompts[-1])


def test_it_does_not_go_on_without_its_beginnings():
    own, here = method(), Author()
    own.began_anew(here.at(4, phase=0))
    for place in (0, 4):
        with pytest.raises(UserError, match="methods.self_replay: how earlier phases' sequences"):
            own.began_anew(here.at(place, phase=1))
