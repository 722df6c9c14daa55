"""What a GPU would meet first, held by tests that need none."""

from tests.faults.row import RANKS, Row

DEVICE = "tests/engine/test_devices.py::test_"
JSON = "tests/engine/deepspeed/test_ds_config.py::test_"

DEVICES: tuple[Row, ...] = (
    Row(
        "G1",
        "DeepSpeed waits for the device in every micro-batch",
        (
            f"{RANKS}synchronisations.py::"
            "test_a_step_of_eight_micro_batches_waits_no_oftener_than_one_of_one",
            f"{JSON}the_run_config_fills_what_the_file_leaves_open",
            f"{JSON}a_timer_that_the_file_asks_for_stays",
        ),
        "goes on, without waiting",
        "calls are counted on a CPU",
    ),
    Row(
        "G2",
        "a first step that takes long, after a resume or an evaluation too",
        (
            f"{RANKS}bad_steps.py::test_patience_ends_with_the_first_step_that_is_applied",
            "tests/test_watchdog.py::test_patience_grows_with_the_longest_step",
        ),
        "goes on for ten times the patience",
    ),
    Row(
        "G3",
        "kernels that add in any order",
        (f"{DEVICE}what_deterministic_sets", f"{DEVICE}another_workspace_is_refused"),
        "equal bits with speed.deterministic; 64 for another cuBLAS workspace",
        "equal bits on a GPU",
    ),
    Row(
        "G4",
        "a host computation in every block backward",
        ("tests/sparse/test_block.py::test_kernels_interpreted",),
        "once for each size",
    ),
    Row(
        "G5",
        "no Triton, C compiler or Python.h on a GPU machine",
        (f"{DEVICE}what_triton_lacks_is_found_at_the_start",),
        "goes on with torch's operations and a warning; 64 with speed.compile",
    ),
    Row(
        "G6",
        "a driver too old for torch",
        (
            f"{DEVICE}a_gpu_that_torch_cannot_use_is_an_error",
            f"{DEVICE}a_gpu_is_a_file_that_may_be_opened_or_a_line_of_the_driver",
            f"{DEVICE}the_cpu_may_be_asked_for_beside_a_gpu",
        ),
        "64",
    ),
    Row(
        "G7",
        "a study that was given some GPUs of a machine",
        (
            "tests/experiments/running/test_runner.py::test_a_study_stays_in_its_gpus",
            "tests/experiments/running/test_runner.py::"
            "test_a_slot_is_a_gpu_and_foreign_ranks_are_forgotten",
        ),
        "stays in them",
    ),
    Row(
        "G8",
        "an optimizer of the DeepSpeed JSON that cannot be compiled",
        (f"{DEVICE}an_optimizer_that_cannot_be_compiled_is_an_error",),
        "64",
        "the compiler's failure is injected",
    ),
    Row(
        "G9",
        "offload through memory that is not pinned",
        (
            f"{JSON}offload_is_pinned",
            f"{RANKS}variants.py::test_layouts_of_buffers_change_nothing",
        ),
        "pinned on a GPU; a CPU has nothing to pin",
    ),
    Row(
        "G10",
        "gradients of many micro-batches summed in bf16 or fp16",
        (
            f"{RANKS}variants.py::test_gradients_of_many_micro_batches_are_summed_in_fp32",
            f"{JSON}lower_precisions_are_summed_in_fp32",
            "tests/model/test_memory.py::test_fp32_sums_cost_four_bytes_of_what_a_stage_keeps",
            "tests/tools/test_plan.py::test_bytes_are_those_of_real_ranks",
        ),
        "fp32 with ZeRO 1 to 3",
        "ZeRO 0 sums in the precision of the weights: DeepSpeed knows nothing else there",
    ),
    Row(
        "G11",
        "a Triton kernel that does not compile, needs too much shared memory or adds atomically",
        (
            "tests/sparse/test_compilation.py::test_block_kernels",
            "tests/sparse/test_compilation.py::test_packed_kernels",
        ),
        "found by make test-slow",
        "compiled for sm_80 and sm_90, run on none",
    ),
)
