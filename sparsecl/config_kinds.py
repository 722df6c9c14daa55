"""Which file is it: users hand a study to a program of runs, and the other way round.

Told by the keys at the root, where a file has more of another kind than of the kind asked for. The
classes that own the keys lie above this file; a test keeps the lists true.
"""

from collections.abc import Collection

RUN = frozenset(
    "name seed init_from model topology tokenizer data phases batch optimizer schedule methods "
    "precision parallel speed eval audit plasticity checkpoint log health".split()
)
STUDY = frozenset(
    "name question base scales seeds orders ds_config arms labels grids links chains probes "
    "controls tune analysis".split()
)
STREAM = frozenset(
    "name seed seeds together stream learner optimizer topology methods panel checkpoint".split()
)
DEEPSPEED = frozenset(
    "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps "
    "gradient_clipping zero_optimization zero_allow_untested_optimizer bf16 fp16 optimizer "
    "scheduler data_types wall_clock_breakdown steps_per_print".split()
)
KINDS = (
    (RUN, "a run config: launch/train.py takes it as --config"),
    (STUDY, "a study: launch/sweep.py takes it, as python launch/sweep.py FILE"),
    (STREAM, "a stream: launch/stream.py takes it, as python launch/stream.py FILE"),
    (DEEPSPEED, "a DeepSpeed JSON: launch/train.py takes it as --ds_config"),
)


def other_kind(found: Collection[str], known: Collection[str]) -> str:
    """What a file with the keys `found` is, and who takes it, if it is not of the kind that knows
    `known`; else empty."""
    own = len(set(found) & set(known))
    keys, text = max(KINDS, key=lambda kind: len(kind[0] & set(found)))
    return text if len(keys & set(found)) > own else ""
