"""Which sequences a phase reads: in sequence, alone with an offset, and joined."""

import numpy as np
import pytest

from sparsecl import config as configs
from sparsecl.data.prepare import prepare
from sparsecl.engine.loop.phase_data import phase_stream
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.schedule import JOINT, make_schedule

SOURCE = "source: synthetic, synthetic: {train_tokens: 4000, validation_tokens: 100}"
BASE = (
    f"data.domains=[{{name: a, {SOURCE}}}, {{name: b, {SOURCE}}}]",
    "tokenizer.kind=bytes",
    "model.context=16",
    "batch.sequences=4",
    "phases.steps=[3, 2]",
)


@pytest.fixture
def stream_of(tmp_path):
    def make(phase, *overrides):
        texts = [*BASE, f"data.cache_dir={tmp_path}", *overrides]
        config = configs.load(RunConfig, None, texts)
        data = prepare(config.data, config.tokenizer, context=16, seed=config.seed)
        return phase_stream(config, make_schedule(config, world_size=1), data, phase)

    return make


def test_a_domain_alone_reads_what_it_reads_in_the_sequence(stream_of):
    indices = np.arange(8)
    in_sequence = stream_of(1).rows(indices)
    alone = stream_of(0, "phases={order: [b], steps: 2, offset: 1}").rows(indices)
    assert (alone == in_sequence).all()
    without = stream_of(0, "phases={order: [b], steps: 2}").rows(indices)
    assert (without != in_sequence).any()


def test_a_joint_phase_reads_the_sequences_of_all_phases(stream_of):
    joint = stream_of(0, "phases.joint=true").rows(np.arange(20))
    parts = [stream_of(0).rows(np.arange(12)), stream_of(1).rows(np.arange(8))]
    assert sorted(joint.tolist()) == sorted(np.concatenate(parts).tolist())


def test_the_plan_of_a_joint_run_has_one_phase():
    config = configs.load(RunConfig, None, [*BASE, "phases.joint=true"])
    schedule = make_schedule(config, world_size=1)
    assert [(p.domain, p.num_steps) for p in schedule.phases] == [(JOINT, 5)]
    assert schedule.domain_name(schedule.phases[0]) == "all domains"
    assert schedule.parts == ((0, 3), (1, 2))
