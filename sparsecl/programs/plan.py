"""What a run or a study needs and costs, before it is paid for: memory, traffic, time, money.

    python tools/plan.py launch/configs/demo.yaml --gpus 1 --gpu cpu
    python tools/plan.py launch/experiments/exp4_scale.yaml --scale 100m_to_1b --gpus 8 --gpu h200
    python tools/plan.py launch/configs/gpt_1b.yaml --gpus 8 --scaling --out plan.json
    python tools/plan.py runs/demo-1a2b3c4d --gpu cpu     # a finished run: planned, and measured

Counts are exact: topologies whose density does not tell them are drawn, as a run does. Bytes
follow the formulas of model/memory.py and planning/traffic.py in sparsecl/, which tests compare
with measurements. Times are a roofline (planning/roofline.py) on the numbers of
planning/machines.py, stretched to what published runs reach of it; --reached takes the share of
your own, which the estimate of a finished run's folder shows. Nothing is trained, and no GPU is
needed.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from sparsecl import command
from sparsecl.checkout import config_file, ds_file, study_file
from sparsecl.errors import UserError
from sparsecl.files import write_json
from sparsecl.planning.machines import MACHINES


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, plan, print. Returns the exit code; see sparsecl/errors.py."""
    options = parser().parse_args(arguments)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed prints how it found out
    warnings.filterwarnings("ignore")
    return command.report(lambda: work(options))


def work(options: argparse.Namespace) -> None:
    """Plan, print, write."""
    check_flags(options)
    text, result = plan(options)
    print(text)
    if options.out:
        write_json(options.out, result)
        print(f"wrote {options.out}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command.Parser(description=__doc__)
    result.add_argument(
        "file",
        type=study_file,
        metavar="CONFIG|STUDY|RUN",
        help="run config, study file, or folder of a finished run",
    )
    result.add_argument("--gpus", type=int, metavar="N", help="GPUs of each run")
    result.add_argument("--gpu", choices=tuple(MACHINES), default="h200", help="default: h200")
    result.add_argument("--tensor", type=int, metavar="T", help="in place of parallel.tensor")
    result.add_argument(
        "--ds_config",
        type=ds_file,
        help="DeepSpeed JSON; default: the study's, or ds_configs/zero1.json",
    )
    result.add_argument("--base", type=config_file, help="run config laid over the config or study")
    result.add_argument("--scale", help="studies: one of the scales; default: the first")
    result.add_argument("--seeds", type=int, help="studies: number of seeds")
    result.add_overrides()
    numbers = {
        "price": (None, "$ per GPU-hour; without it no money is shown"),
        "bandwidth": (None, "GB/s of each GPU to other nodes, in place of the table's"),
        "reached": (None, "share of the roofline's speed that your runs reach, as measured"),
        "disk": (1.0, "GB/s at which all ranks together save (default 1)"),
        "mttf": (None, "--scaling: hours between failures of a node (default 1011)"),
        "restart": (None, "--scaling: seconds that a restart takes (default 300)"),
    }
    for name, (default, text) in numbers.items():
        result.add_argument(f"--{name}", type=float, default=default, metavar="X", help=text)
    result.add_argument("--scaling", action="store_true", help="tables for 8 to 1024 GPUs")
    result.add_argument("--out", type=Path, metavar="FILE.json", help="write all figures there")
    return result


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError for what no config checks."""
    for name in ("gpus", "tensor", "seeds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be >= 1, got {value}")
    for name, least in (("price", 0.0), ("restart", 0.0)):
        value = getattr(options, name)
        if value is not None and not least <= value < float("inf"):
            raise UserError(f"--{name} must be >= 0, got {value:g}")
    for name in ("bandwidth", "disk", "mttf", "reached"):
        value = getattr(options, name)
        if value is not None and not 0.0 < value < float("inf"):
            raise UserError(f"--{name} must be > 0, got {value:g}")
    if options.gpus is None and not options.file.is_dir():
        raise UserError("--gpus is missing: say how many GPUs each run shall have")
    if options.file.is_dir():
        given = {"--gpus": options.gpus, "--tensor": options.tensor, "--set": options.set}
        given |= {"--ds_config": options.ds_config, "--base": options.base}
        for flag in (flag for flag, value in given.items() if value):
            raise UserError(f"{flag}: {options.file} is a run that has ended; leave it out")


def plan(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The text, and the content of the JSON file."""
    # Imported late, so that --help and a typo in a flag cost no wait for torch.
    from sparsecl.planning.estimate import estimate
    from sparsecl.planning.measured import compare, comparison_text, read_run
    from sparsecl.planning.subjects import read_subjects
    from sparsecl.planning.text import run_text, study_hours, study_text

    machine = MACHINES[options.gpu].changed(network=options.bandwidth, reached=options.reached)
    disk = options.disk * 1e9
    run = read_run(options.file) if options.file.is_dir() else None
    subjects = read_subjects(
        run.config if run else options.file,
        ds_path=run.ds_config if run else options.ds_config,
        base=options.base,
        tensor=options.tensor,
        scale=options.scale,
        overrides=options.set,
        seeds=options.seeds,
    )
    gpus = run.ranks if run else options.gpus
    found = [estimate(s, machine, gpus, disk=disk) for s in subjects.subjects]
    if subjects.is_study:
        text = study_text(subjects, found, options.price)
    else:
        text = run_text(found[0], options.price)
    hours = study_hours(found)
    result: dict[str, Any] = {
        "title": subjects.title,
        "machine": asdict(machine),
        "gpus": gpus,
        "gpu_hours": hours,
        "cost": None if options.price is None else hours * options.price,
        "runs": [as_json(e) for e in found],
    }
    if run:
        result["measured"] = compare(found[0], run)
        text = f"{text}\n\n{comparison_text(result['measured'])}"
    if options.scaling:
        more, tables = scaling(options, machine, subjects.subjects, disk)
        text, result["scaling"] = f"{text}\n\n{more}", tables
    return text, result


def scaling(
    options: argparse.Namespace, machine: Any, subjects: Sequence[Any], disk: float
) -> tuple[str, dict[str, Any]]:
    """Tables over numbers of GPUs for every subject."""
    from sparsecl.planning.scaling import Faults, grown_batch, own_batch
    from sparsecl.planning.text import scaling_text

    given = {"node_mttf_hours": options.mttf, "restart_seconds": options.restart}
    faults = Faults(**{key: value for key, value in given.items() if value is not None})
    texts, tables = [], {}
    for subject in subjects:
        ways = {
            "the run's own batch": own_batch(subject, machine, faults, disk=disk),
            "a batch that grows with the GPUs": grown_batch(subject, machine, faults, disk=disk),
        }
        for way, rows in ways.items():
            texts.append(scaling_text(f"{subject.name}, {way}", rows))
        tables[subject.name] = {
            way: [row if isinstance(row, str) else asdict(row) for row in rows]
            for way, rows in ways.items()
        }
    note = (
        "(waiting: communication that nothing hides; every: checkpoint interval by Young's "
        "formula, and in steps; goodput: by simulated failures; run h: training with failures, "
        "and evaluation)"
    )
    return "\n\n".join([*texts, note]), tables


def as_json(found: Any) -> dict[str, Any]:
    """All figures of an estimate."""
    counts, time = found.subject.counts, found.time
    return {
        "name": found.subject.name,
        "num_runs": found.subject.num_runs,
        "parameters": {
            "live": counts.live,
            "total": counts.total,
            "density_masked": counts.density_masked,
        },
        "flops_per_token": asdict(found.flops.per_token),
        "flops": found.flops.parts(),
        "layout": {
            "tensor": found.subject.config.parallel.tensor,
            "dp_size": found.schedule.dp_size,
            "zero_stage": found.stage,
            "micro": found.schedule.micro,
            "accumulation": found.schedule.accumulation,
            "tokens_per_step": found.schedule.tokens_per_step,
        },
        "memory": {**asdict(found.fit), "fits": found.fit.fits},
        "largest_micro": found.largest_micro,
        "traffic": [asdict(flow) for flow in found.traffic],
        "seconds": {**asdict(time), "step": time.step},
        "tokens_per_second": found.tokens_per_second,
        "mfu": {
            "datasheet": found.utilisation(found.machine.peak),
            "measured": found.utilisation(found.machine.gemm_rate),
        },
        "checkpoint": {"bytes": found.checkpoint_bytes, "seconds": found.save_seconds},
        "cost": {
            **asdict(found.cost),
            "seconds": found.cost.seconds,
            "gpu_hours": found.cost.gpu_hours,
        },
        "passes": found.passes,
        "warnings": list(found.warnings),
    }


def start() -> NoReturn:
    """Be the whole process, as a script or a command."""
    command.start(main)
