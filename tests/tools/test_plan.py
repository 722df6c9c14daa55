"""tools/plan.py: by hand, against built models, and against what real ranks hold and exchange."""

import json
import math
from dataclasses import replace

import pytest

from sparsecl import config as configs
from sparsecl.engine.run_config import RunConfig
from sparsecl.engine.topology import draw_topologies
from sparsecl.model.build import build_gpt
from sparsecl.model.config import ModelShape, padded_vocabulary
from sparsecl.model.memory import parameter_sizes
from sparsecl.planning import costs, roofline
from sparsecl.planning.estimate import Estimate, estimate
from sparsecl.planning.machines import MACHINES
from sparsecl.planning.roofline import Work
from sparsecl.planning.scaling import Faults, Row, own_batch, simulate_goodput, young_interval
from sparsecl.planning.subjects import Counter, Subject
from sparsecl.planning.text import memory_rows, run_text
from sparsecl.planning.traffic import Flow, Wiring
from sparsecl.programs import plan
from tests.distributed import cases
from tests.metrics.fake_run import from_matrix, write_lines
from tests.tools import plan_cases

H200 = MACHINES["h200"]
SIZES = ("model.width=64", "model.layers=1", "batch.micro=1")
STAGES = ("zero0", "zero1", "zero2", "zero3")
STORAGES = ("masked", "packed")


def subject(*overrides: str, stage: str = "zero2") -> Subject:
    config = cases.load("unused", overrides)
    counter = Counter()
    ds_path = cases.ROOT / "ds_configs" / f"{stage}.json"
    counts, topologies = counter.counts(config), counter.topologies(config)
    return Subject("tiny", config, ds_path, 1, counts, topologies)


def planned(*overrides: str, gpus: int = 1, gpu: str = "cpu", stage: str = "zero2") -> Estimate:
    return estimate(subject(*overrides, stage=stage), MACHINES[gpu], gpus, disk=1e9)


@pytest.mark.parametrize("gpu", ["cpu", "h200"])
@pytest.mark.parametrize("stage", [*STAGES, "zero2_offload"])
@pytest.mark.parametrize("context", [8, 128])
def test_the_lines_of_memory_add_up_to_its_total(gpu, stage, context):
    found = planned(f"model.context={context}", gpus=2, gpu=gpu, stage=stage)
    assert sum(memory_rows(found.fit).values()) == found.fit.needed
    assert "CUDA" not in run_text(found, None)


# ---- by hand -----------------------------------------------------------------------------------

SHAPE = ModelShape(layers=2, width=100, heads=1, context=10, mlp=400)
WORK = Work(
    shape=SHAPE,
    precision="bf16",
    tokens=1000,
    accumulation=4,
    tp_size=1,
    vocab_local=50,
    dense_weights=1_000_000,
    state_elements=100_000,
)
# 1e12 FLOP/s in products and 1e10 bytes/s; kernels start in no time.
PLAIN = replace(
    H200,
    peak=2e12,
    gemm_share=0.5,
    attention_share=0.5,
    memory_bytes_per_second=2e10,
    memory_share=0.5,
    launch=0.0,
    reached=1.0,
    link=2e9,
    link_share=0.5,
    latency=0.0,
)


def test_roofline_by_hand():
    flow = Flow("gradients", "dp", "all_reduce", handed=1_000_000, calls=1)
    found = roofline.step_time(WORK, PLAIN, Wiring(PLAIN, 1, 4), [flow], overlap=False)
    assert found.products == pytest.approx(4 * 6 * 1e6 * 1000 / 1e12)
    # 12 L W context for the square, half of it below the diagonal.
    assert found.attention == pytest.approx(4 * 6 * 2 * 100 * 10 * 1000 / 1e12)
    # Forward (10 + 4) W + 2 mlp elements of 2 bytes in 2 layers, backward twice as many.
    assert found.elementwise == pytest.approx(4 * 3 * 2 * 1000 * 2 * (1400 + 800) / 1e10)
    assert found.logits == pytest.approx(4 * 38 * 1000 * 50 / 1e10)
    assert found.optimizer == pytest.approx(48 * 100_000 / 1e10)
    # A ring of four sends 2 * 3 / 4 of it at 1 GB/s.
    assert found.exposed == found.communication == pytest.approx(1.5e-3)
    parts = (found.products, found.attention, found.elementwise, found.logits, found.optimizer)
    assert found.step == pytest.approx(sum(parts) + 1.5e-3) and found.gaps == 0.0
    half = PLAIN.changed(reached=0.5)
    slower = roofline.step_time(WORK, half, Wiring(PLAIN, 1, 4), [flow], overlap=False)
    assert slower.step == pytest.approx(2 * sum(parts) + 1.5e-3)


def test_chunks_of_the_loss_add_to_the_gradient_of_the_head_by_hand():
    def losses(chunk):
        overrides = ("model.context=256", "parallel.tensor=2", "batch.micro=8")
        made = planned(*overrides, f"speed.loss_chunk={chunk}", gpus=2, gpu="h200")
        (flow,) = [flow for flow in made.traffic if flow.what == "losses"]
        return flow.collective, flow.calls, flow.handed / made.schedule.accumulation

    # Three numbers of 2048 tokens travel, once for each chunk or once each.
    whole, cut = losses(0), losses(1000)
    assert (whole[0], cut[0]) == ("all_reduce", "all_gather") and cut[1] == whole[1]
    assert whole[2] == cut[2] == 3 * 4 * 2048
    # 1000 tokens in 4 chunks; bf16 products [50, width] written and read, a sum in fp32 in and out.
    added = roofline.logit_bytes(replace(WORK, loss_chunk=300)) - roofline.logit_bytes(WORK)
    assert added == 4 * 12 * 50 * WORK.shape.width


def test_gradients_hide_behind_the_last_backward_pass():
    flow = Flow("gradients", "dp", "all_reduce", handed=10_000_000, calls=1)
    found = roofline.step_time(WORK, PLAIN, Wiring(PLAIN, 1, 4), [flow], overlap=True)
    backward = (found.products + found.attention) * 2 / 3 / 4
    assert found.communication == pytest.approx(15e-3)
    assert found.exposed == pytest.approx(15e-3 - backward) and backward > 0


def test_small_models_wait_for_their_kernels():
    slow = replace(PLAIN, launch=1.0)
    found = roofline.step_time(WORK, slow, Wiring(slow, 1, 1), [], overlap=False)
    assert found.step - found.optimizer == pytest.approx(4 * roofline.num_kernels(WORK))


def test_packed_weights_are_expanded_for_each_product():
    packed = replace(WORK, packed_cells=800, packed_live=80)
    one_way = 2 * 880 + 100  # both in bf16, and a bit for each cell
    assert roofline.pass_storage_bytes(packed) == 3 * one_way
    kept = replace(packed, keep_expansion=True)
    assert roofline.pass_storage_bytes(kept) == roofline.step_storage_bytes(kept) == one_way
    assert roofline.pass_storage_bytes(replace(WORK, masked_cells=800)) == 800 * 5


def test_spread_positions_move_other_bytes_of_equal_number():
    def at(*more):
        overrides = ("model.context=256", "parallel.tensor=2", "batch.micro=8", *more)
        return planned(*overrides, gpus=2, gpu="h200")

    whole, spread = at(), at("parallel.sequence=true")
    kinds = [
        [(flow.what, flow.collective) for flow in made.traffic if flow.axis == "tp"]
        for made in (whole, spread)
    ]
    assert kinds[0] == [("activations", "all_reduce"), ("losses", "all_gather")]
    assert kinds[1] == [
        ("activations", "all_gather"),
        ("activations", "reduce_scatter"),
        ("gains", "all_reduce"),
        ("losses", "all_gather"),
    ]
    sent = [sum(f.wire(2) for f in m.traffic if f.axis == "tp") for m in (whole, spread)]
    assert sent[0] < sent[1] < 1.05 * sent[0]  # gradients of positions and of gains come on top
    assert spread.fit.memory.activations < whole.fit.memory.activations
    assert spread.time.elementwise < whole.time.elementwise
    alone = ("parallel.tensor=1", "batch.micro=4")
    assert at(*alone, "parallel.sequence=true").traffic == at(*alone).traffic


def test_groups_reach_over_links_and_network():
    inside, outside = Wiring(H200, 2, 4), Wiring(H200, 2, 8)
    assert inside.reach("dp")[0] == outside.reach("tp")[0] == pytest.approx(0.8 * 450e9)
    # Four of a node's eight GPUs are in the group, with a 50 GB/s port each.
    assert outside.reach("dp")[0] == pytest.approx(0.8 * 200e9)
    slower = H200.changed(network=10.0)
    assert Wiring(slower, 2, 8).reach("dp")[0] == pytest.approx(0.8 * 40e9)


def test_rings_send_what_they_must():
    sent = {kind: Flow("x", "dp", kind, 12, 1).wire(4) for kind in ("all_reduce", "all_gather")}
    assert sent == {"all_reduce": 18.0, "all_gather": 36.0}
    assert Flow("x", "dp", "reduce_scatter", 12, 1).wire(4) == 9.0


def test_young_by_hand():
    # An hour between failures, two seconds to save: every two minutes.
    assert young_interval(3600.0, 2.0) == pytest.approx(120.0)


@pytest.mark.parametrize(("interval", "save"), [(120.0, 2.0), (1000.0, 2.0), (30.0, 10.0)])
def test_simulated_failures_give_the_expected_goodput(interval, save):
    # Whole cycles before an exponential failure: 1 / (exp((T + save) / MTTF) - 1) on average.
    mttf, restart = 3600.0, 300.0
    cycles = 1.0 / math.expm1((interval + save) / mttf)
    expected = cycles * interval / (mttf + restart)
    assert simulate_goodput(interval, save, mttf, restart) == pytest.approx(expected, rel=0.03)


def test_young_wastes_least():
    best = young_interval(3600.0, 20.0)
    found = [simulate_goodput(best * x, 20.0, 3600.0, 0.0) for x in (0.25, 1.0, 4.0)]
    assert found[1] > found[0] and found[1] > found[2]


def test_evaluations_and_saves_by_hand():
    caps = ("eval.tokens=40", "eval.end_tokens=300")
    made = planned("phases.steps=5", "eval.every=2", *caps, "checkpoint.every=4")
    # At the start, after steps 2 and 4, and at the end of the one phase.
    assert made.cost.evaluations == 4
    assert made.cost.saves == 2
    # Twice 40 tokens, three windows of 16, one forward call of 16 windows; twice 300: two calls.
    tokens = costs.evaluation_tokens(made.subject.config, made.schedule, {})
    assert tokens == (2 * 1 + 2 * 2) * 16 * 16
    # Of 100 tokens there is one call, whatever the cap.
    short = costs.evaluation_tokens(made.subject.config, made.schedule, {"a": 100})
    assert short == 4 * 16 * 16


# ---- counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ("topology.kind=dense",),
        ("topology.storage=masked",),
        ("topology.storage=packed",),
        ("topology.kind=er_bernoulli", "topology.storage=packed"),
    ],
)
def test_parameters_are_those_of_the_model(overrides):
    found = subject(*overrides)
    config = found.config
    model = build_gpt(config.model, config.topology, vocab_size=257, seed=config.seed)
    built = sum(p.numel() for p in model.parameters())
    padding = (padded_vocabulary(257, 1) - 257) * 32
    packed = config.topology.storage == "packed" and config.topology.kind != "dense"
    counted = found.counts.live if packed else found.counts.total
    assert built == counted + padding
    sizes = parameter_sizes(model.shape, 257, found.topologies, config.topology)
    assert sorted(sizes) == sorted(p.numel() for p in model.parameters())
    assert sizes[0] == model.embedding.weight.numel()


@pytest.mark.parametrize("allocation", ["uniform", "er"])
def test_counts_that_need_no_draw_are_those_of_a_draw(allocation):
    config = subject(f"topology.allocation={allocation}", "topology.density=0.13").config
    drawn = {name: found.num_live for name, found in draw_topologies(config).items()}
    counted = Counter().topologies(config)
    assert drawn and {name: found.num_live for name, found in counted.items()} == drawn
    assert all(found.rows is None for found in counted.values())


# ---- real ranks --------------------------------------------------------------------------------


def shared(tensor: int) -> tuple[str, ...]:
    """Two micro-batches on each of two ranks."""
    sequences = 4 // tensor
    return (*SIZES, f"parallel.tensor={tensor}", f"batch.sequences={sequences}", "precision=bf16")


@pytest.mark.fault("G10")
@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_bytes_are_those_of_real_ranks(pool, shared_cache, tensor):
    names = [(stage, storage) for stage in STAGES for storage in STORAGES]
    ranks = pool.run(plan_cases.measure, 2, str(shared_cache), shared(tensor), names)
    for number, (stage, storage) in enumerate(names):
        compare(stage, storage, tensor, [rank[number] for rank in ranks])


@pytest.mark.dist
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("zero0", ("precision=fp32", "topology.storage=masked")),
        ("zero2", ("precision=bf16", "topology.storage=packed")),
    ],
)
@pytest.mark.parametrize(
    "method", ["ewc={sequences: 4}", "si={}", "o_lora={rank: 2}", "packnet={retrain: 0.5}"]
)
def test_what_methods_keep_is_what_a_real_rank_holds(
    pool, shared_cache, tmp_path, stage, more, method
):
    # In the third phase some of every slice is held.
    phases = (*cases.TWO_DOMAINS, "phases.order=[a, b, a]", "phases.steps=2")
    overrides = (*SIZES, *phases, f"methods.{method}", *more)
    places = (str(shared_cache), str(tmp_path))
    found = pool.run(plan_cases.measure_methods, 1, *places, stage, overrides)[0]
    expected = planned(*overrides, stage=stage).fit.memory
    for part in ("weights", "gradients", "master", "moments", "indices", "beside"):
        assert found[part] == getattr(expected, part), part


def compare(stage: str, storage: str, tensor: int, ranks: list) -> None:
    """The planner against the fullest rank: parameters exact, bytes within 5 %."""
    made = planned(*shared(tensor), f"topology.storage={storage}", gpus=2, stage=stage)
    case = (stage, storage, tensor)
    measured = max(ranks, key=lambda rank: rank["parameters"])
    config = made.subject.config
    sizes = parameter_sizes(
        made.schedule.shape, 257, made.subject.topologies, config.topology, tp_size=tensor
    )
    assert sum(sizes) == measured["parameters"], case
    for part in ("weights", "gradients", "master", "moments", "indices"):
        expected, found = getattr(made.fit.memory, part), measured["state"][part]
        if part == "indices":
            # A group's mask has a byte for each cell of a shard. Shards have unequally many, since
            # the embedding lies in one of them: the plan counts their mean.
            found = sum(rank["state"][part] for rank in ranks) / len(ranks)
        assert found == pytest.approx(expected, rel=0.05), (*case, part)
    names = {"all_reduce": "allreduce", "reduce_scatter": "reduce_scatter_base"}
    names["all_gather"] = "allgather_base"
    for collective, name in names.items():
        expected = sum(flow.handed for flow in made.traffic if flow.collective == collective)
        # Beside them go sums of a few bytes: norms, and whether a gradient is finite.
        assert measured["bytes"].get(name, 0) == pytest.approx(expected, rel=0.05, abs=64), case


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
def test_checkpoints_are_as_large_as_planned(pool, shared_cache, tmp_path, storage):
    # No more tokens to compare models on than the small corpus has.
    drift = ("eval.kl_tokens=256", "model.context=64")
    overrides = (*SIZES, *drift, f"topology.storage={storage}")
    arguments = (str(shared_cache), str(tmp_path), overrides)
    (found,) = pool.run(plan_cases.saved_bytes, 1, *arguments)
    assert found == pytest.approx(planned(*overrides).checkpoint_bytes, rel=0.05)


# ---- what is planned ---------------------------------------------------------------------------


def test_what_does_not_fit_is_warned_about():
    large = ("model.preset=1b", "topology.kind=dense", "batch.sequences=512", "batch.micro=64")
    made = planned(*large, "model.layers=null", "model.width=null", "model.heads=null",
                   "model.context=null", gpus=8, gpu="l40s")  # fmt: skip
    assert not made.fit.fits and made.largest_micro < 64
    assert any(line.startswith("does not fit: ") for line in made.warnings)
    if made.largest_micro:
        assert f"batch.micro={made.largest_micro}" in "".join(made.warnings)


def test_the_largest_micro_batch_is_the_last_that_fits():
    large = ("topology.kind=dense", "model.width=1024", "model.layers=12", "model.context=1024")
    made = planned(*large, "batch.sequences=4", gpu="a100")
    largest = made.largest_micro
    assert largest > 1

    def at(micro):
        return planned(*large, f"batch.sequences={micro}", f"batch.micro={micro}", gpu="a100")

    assert at(largest).fit.fits and not at(largest + 1).fit.fits


def test_a_batch_that_does_not_divide_is_planned_beside_a_warning():
    made = planned("batch.sequences=8", gpus=3)
    assert made.schedule.accumulation * made.schedule.micro * 3 == 9
    assert made.warnings[0].startswith("batch.sequences=8 is not a multiple of")
    assert not planned("batch.sequences=9", gpus=3).warnings


def test_scaling_names_sizes_that_do_not_divide():
    faults = Faults(node_mttf_hours=100.0)
    rows = own_batch(subject("batch.sequences=32"), H200, faults, disk=1e9)
    good = [row for row in rows if isinstance(row, Row)]
    assert [row.gpus for row in good] == [8, 16, 32]
    assert rows[3] == "   64  batch.sequences=32 does not divide over 64"
    assert good[0].efficiency == 1.0 > good[2].efficiency
    # Four nodes fail four times as often; Young's interval follows the root.
    assert [row.mttf_hours for row in good] == [100.0, 50.0, 25.0]
    assert good[0].interval_seconds == pytest.approx(2 * good[2].interval_seconds)


STUDY = """
name: two
base:
  model: {preset: null, layers: 1, width: 32, heads: 4, context: 16}
  tokenizer: {kind: bytes}
  data: {domains: [{name: a, source: synthetic}, {name: b, source: synthetic}]}
  phases: {steps: 10}
seeds: 3
arms:
  dense: {topology: {kind: dense}}
  sparse: {topology: {kind: er_fixed, density: 0.25}, eval: {every: 2}}
controls: {alone: [sparse]}
"""


def test_a_study_costs_the_sum_of_its_runs(tmp_path, capsys):
    path, out = tmp_path / "study.yaml", tmp_path / "plan.json"
    path.write_text(STUDY)
    words = [str(path), "--gpus", "2", "--gpu", "cpu", "--price", "2", "--out", str(out)]
    assert plan.main(words) == 0
    result = json.loads(out.read_text())
    runs = {run["name"]: run for run in result["runs"]}
    assert {name: run["num_runs"] for name, run in runs.items()} == {
        "dense": 3,
        "sparse": 3,
        "sparse.alone.a": 3,
        "sparse.alone.b": 3,
    }
    hours = sum(run["num_runs"] * run["cost"]["gpu_hours"] for run in runs.values())
    assert result["gpu_hours"] == pytest.approx(hours) and result["cost"] == 2 * hours
    sparse = runs["sparse"]["cost"]
    assert sparse["evaluation_seconds"] > runs["dense"]["cost"]["evaluation_seconds"] > 0
    parts = [sparse[f"{part}_seconds"] for part in ("train", "evaluation", "save")]
    assert sparse["gpu_hours"] == pytest.approx(2 * sum(parts) / 3600)
    shown = capsys.readouterr().out
    assert "4 arms, 12 runs, each on 2 x CPU core" in shown and "sparse.alone.b" in shown


def test_a_config_is_planned_with_all_its_parts(capsys):
    words = ["launch/configs/demo.yaml", "--gpus", "16", "--gpu", "h100", "--tensor", "2"]
    words[0] = str(cases.ROOT / words[0])
    assert plan.main([*words, "--scaling"]) == 0
    shown = capsys.readouterr().out
    parts = (
        "parameters",
        "FLOPs/token",
        "of the run by live weights",
        "moments",
        "largest micro-batch",
        "all_reduce",
        "MFU",
    )
    for part in (*parts, "activations", "goodput", "GPU-hours", "tp 2 x dp 8"):
        assert part in shown, part
    assert "$" not in shown  # nobody has named a price


def run_folder(tmp_path, **performance):
    """The folder of a run of demo.yaml on two ranks, and its plan."""
    config = configs.load(RunConfig, cases.ROOT / "launch" / "configs" / "demo.yaml", [])
    (tmp_path / "config.yaml").write_text(configs.dump(config))
    zero = json.loads((cases.ROOT / "ds_configs" / "zero1.json").read_text())
    (tmp_path / "ds_config.json").write_text(json.dumps(zero))
    end = {"kind": "end", "seconds": 1.0, "tokens_per_second": 1.0, "performance": performance}
    lines = [*from_matrix([[4.0], [2.0]], ["code"], [0]), end]
    write_lines(tmp_path / "scalars.jsonl", lines)
    (tmp_path / "results.json").write_text("{}")
    counter = Counter()
    counts, topologies = counter.counts(config), counter.topologies(config)
    one = Subject("demo", config, tmp_path / "ds_config.json", 1, counts, topologies)
    return estimate(one, MACHINES["cpu"], 2, disk=1e9)


def test_a_finished_run_shows_what_its_plan_lacks(tmp_path, capsys):
    expected = run_folder(tmp_path)  # twice as slow as planned, and a third of the memory
    seconds, memory = 2 * expected.time.step, expected.fit.needed // 3
    run_folder(tmp_path, ranks=2, step_seconds={"median": seconds}, peak_memory_bytes=memory)
    out = tmp_path / "plan.json"
    assert plan.main([str(tmp_path), "--gpu", "cpu", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["measured"]
    assert found["step_seconds"]["ratio"] == pytest.approx(2)
    assert found["tokens_per_second"]["ratio"] == pytest.approx(0.5)
    assert found["memory_bytes"]["ratio"] == pytest.approx(1 / 3, rel=1e-6)
    # Planned with what the run has reached, a step takes what the run's did.
    machine = MACHINES["cpu"].changed(reached=found["reached"])
    assert estimate(expected.subject, machine, 2, disk=1e9).time.step == pytest.approx(seconds)
    assert "the run reached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("performance", "words", "code", "message"),
    [
        ({}, (), 65, "has no step time and memory under `performance`"),
        ({}, ("--gpus", "2"), 64, "--gpus: "),
        (None, (), 66, "results.json: no such file"),
    ],
)
def test_a_run_that_says_too_little_is_refused(tmp_path, capsys, performance, words, code, message):
    if performance is not None:
        run_folder(tmp_path, **performance)
    assert plan.main([str(tmp_path), *words]) == code
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["CONFIG"], 64, "--gpus is missing"),
        (["none.yaml", "--gpus", "8"], 66, "none.yaml: no such file"),
        (["CONFIG", "--gpus", "0"], 64, "--gpus must be >= 1, got 0"),
        (["CONFIG", "--gpus", "8", "--tensor", "3"], 64, "parallel.tensor=3 does not divide"),
        (["CONFIG", "--gpus", "6", "--tensor", "3"], 64, "model.heads=4 is not divisible"),
        (["CONFIG", "--gpus", "8", "--mttf", "0"], 64, "--mttf must be > 0, got 0"),
        (["CONFIG", "--gpus", "8", "--scale", "x"], 64, "--scale and --seeds belong to a study"),
    ],
)
def test_mistakes_are_one_line(words, code, message, capsys):
    config = str(cases.ROOT / "launch" / "configs" / "demo.yaml")
    assert plan.main([config if word == "CONFIG" else word for word in words]) == code
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
