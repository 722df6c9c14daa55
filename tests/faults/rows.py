"""The faults that a run is built for, a row each.

The design lists P = processes, C = checkpoints, D = disks, N = numbers, K = configs, T = training
data and J = jobs. Looks at the built system have found more: S = states, R = records, H = caches,
F = files, X = signals and streams, G = devices.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One fault. The tests that show it carry its id: `@pytest.mark.fault("C1")`."""

    id: str
    fault: str
    bound: str
    """Exit code, or time, or "goes on"."""

    note: str = ""
    """What no test here shows."""


ROWS = (
    Row(
        "P1",
        "SIGKILL of one rank in a step",
        "survivors end with 76 in 35 s; the same run bit for bit",
        "one node: what other nodes do hangs on their collective timeout",
    ),
    Row("P2", "SIGKILL of all ranks in a step", "bit for bit"),
    Row("P3", "SIGKILL while a rank writes its file", "last good checkpoint"),
    Row("P4", "SIGKILL at each border of publication", "one newest checkpoint, whole"),
    Row("P5", "leftovers of a dead run; the same step saved again", "goes on"),
    Row(
        "P6",
        "SIGTERM, SIGUSR1 or SIGINT, also twice",
        "75",
        "sent to the ranks; that a launcher passes it on is the launcher's",
    ),
    Row("P7", "a signal to one rank only", "75 on all ranks"),
    Row(
        "P8",
        "time limit of a Slurm job",
        "75",
        "the signal alone; requeueing belongs to the scripts in slurm/",
    ),
    Row("P9", "ten random kills in one run of two ranks", "bit for bit"),
    Row("P10", "an exception on one rank", "70 there, 76 on the others, in 60 s on a busy machine"),
    Row(
        "P11",
        "a rank that hangs or is stopped",
        "76 after health.hang_seconds",
        "a thread that keeps the interpreter's lock silences its own watchdog; peers bite",
    ),
    Row(
        "P12",
        "one rank is slow",
        "goes on; the rank is named, its ratio drawn",
        "the clock of the GPU is not tested; ZeRO-3 and tensor parallelism hide a slow forward",
    ),
    Row(
        "P13",
        "a collective skipped, or of another size",
        "76 after health.hang_seconds; gloo itself aborts at another size",
    ),
    Row(
        "C1",
        "a file that lost its end",
        "an older one is used; 65 if none is whole, or all are gone",
    ),
    Row(
        "C2",
        "one bit flipped in any file",
        "as C1",
        "bits are drawn over the whole of every file, not all of them tried",
    ),
    Row("C3", "a file missing, added or of another step", "as C1"),
    Row("C4", "`latest` empty, garbage, or leading elsewhere", "goes on, with a note"),
    Row("C5", "--resume must without a checkpoint", "66"),
    Row("C6", "masks of another seed, density or layer", "65"),
    Row(
        "C7",
        "a weight or moment outside of the mask",
        "65 in a checkpoint, 70 in memory",
        "the format has no place for such a value: only live weights are saved",
    ),
    Row("C8", "ranks with unlike masks", "70 at the next audit"),
    Row(
        "C9", "another number of ranks, another ZeRO stage", "the same tensors, each sequence once"
    ),
    Row("C10", "another tensor-parallel size", "as C9"),
    Row("C11", "sizes that do not divide", "64; the vocabulary is padded"),
    Row("C12", "another precision", "goes on with the same masters"),
    Row("C13", "the optimizer's state is not all there", "65; --weights_only goes on"),
    Row("C14", "pickles in place of any file", "65, nothing executed"),
    Row("C15", "headers and JSON that ask for too much", "65, nothing allocated"),
    Row("C16", "a checkpoint of another format version", "65, named"),
    Row("C17", "links, and paths that lead outside", "65"),
    Row(
        "D1",
        "the disk is full",
        "74, or goes on if checkpoint.on_failure says so",
        "RLIMIT_FSIZE and injected ENOSPC, not a full file system",
    ),
    Row(
        "D2",
        "a folder read-only or gone; the disk fails",
        "73 or 74",
        "EIO is injected; a slow NFS is a slow save, which the watchdog allows an hour",
    ),
    Row("D3", "retention with one whole checkpoint left", "it stays"),
    Row(
        "D4",
        "a power cut loses what no fsync covers",
        "last good checkpoint",
        "a model of the disk; no real power was cut",
    ),
    Row("N1", "NaN loss on one rank", "step discarded; 70 after health.max_bad_steps"),
    Row(
        "N2",
        "fp16 overflow",
        "step discarded, scale halved; 70 at the lowest scale",
        "on the CPU; a fixed fp16 loss scale has no lowest one, and is not stopped",
    ),
    Row("N3", "infinite gradient under bf16", "step discarded"),
    Row("N4", "the loss jumps", "goes on; logged"),
    Row("N5", "NaN outside of the mask", "zero again, or 70 at the audit"),
    Row("N6", "a bit of a live weight flips on one rank", "70 at the next audit"),
    Row(
        "N7",
        "a layer or slice without live weights",
        "64",
        "single dead rows are counted per kind of layer in the table of the start, not warned of",
    ),
    Row("K1", "a misspelt key", "64"),
    Row("K2", "broken YAML or JSON", "64"),
    Row("K3", "a value of the wrong type or range", "64"),
    Row(
        "K4",
        "tags, shell text and odd paths",
        "text stays text",
        "quoting in the scripts of slurm/ is not tested here",
    ),
    Row("K5", "numbers of the two configs that disagree", "64, with the equation"),
    Row("K6", "another config on resume", "64, or --allow_config_change"),
    Row(
        "T1",
        "a data file missing, a folder, or unreadable",
        "66",
        "unreadable files are skipped where root runs the tests",
    ),
    Row("T2", "a token file cut or changed", "65"),
    Row("T3", "empty or short text", "65"),
    Row("T4", "bytes that are no text, NUL, long lines, CRLF", "65 with the byte offset"),
    Row("T5", "tokens beyond the vocabulary, or of the wrong type", "65"),
    Row("T6", "another tokenizer", "65"),
    Row("T7", "the text changed between two starts", "65, or --allow_data_change"),
    Row("T8", "domains missing, repeated or in another order; a kill at a border", "65"),
    Row("J1", "two jobs in one folder", "73"),
    Row(
        "J2",
        "a lock whose owner may be gone",
        "73, or taken over",
        "squeue is a script of the test",
    ),
    Row("J3", "the port is in use; nobody at MASTER_ADDR", "64; 76 after health.join_seconds"),
    Row("J4", "a clock that jumps; another time zone", "goes on"),
    Row("J5", "a rank that does not come", "76 after health.join_seconds, naming it"),
    Row(
        "J6",
        "no GPU, or no NCCL",
        "gloo on the CPU, or 64",
        "whether GPU and NCCL are there is simulated",
    ),
    Row(
        "S1",
        "the manifest says of the run what cannot be, with digests that fit",
        "an older one is used; 65 if none is lawful",
        "who changes published.jsonl too can lie about seconds, means and samples",
    ),
    Row("S2", "counters and scalers of other names, moments that are none", "as S1"),
    Row("S3", "masters or moments that are not finite, negative, or of another precision", "as S1"),
    Row("S4", "a checkpoint that a newer version wrote", "65; never removed, replaced or counted"),
    Row(
        "S5",
        "ranks of two jobs, with two configs or with two texts meet",
        "64 or 65 on all ranks, before anything is done",
        "code that was edited on one machine is told by no version",
    ),
    Row(
        "R1",
        "one bit flipped in scalars.jsonl, before or behind the checkpoint, or of a finished run",
        "65, nothing changed; behind the checkpoint it is cut off and written anew",
        "bits are drawn over the whole file, not all of them tried",
    ),
    Row(
        "R2",
        "results.json truncated, damaged or of another run",
        "made anew from the records, bit for bit; 65 if they have no end",
    ),
    Row(
        "R3",
        "the row before training is asked for again",
        "--init_checkpoint keeps step 0, and its scores are that row, bit for bit",
        "bit for bit on the layout that wrote it; others round differently",
    ),
    Row(
        "R4",
        "attempts.jsonl or config.yaml of a run changed",
        "no goodput, with a warning; 65 where config.yaml counts",
        "environment.json and ds_config.json are for people: a resume writes them anew",
    ),
    Row(
        "H1",
        "an entry of the data cache swapped, renamed or copied over another; links and pipes in it",
        "65",
    ),
    Row(
        "H2",
        "cached text or a manifest altered",
        "65",
        "a manifest that is sealed anew with its data is believed: no key is secret",
    ),
    Row(
        "H3",
        "token files overwritten, cut or replaced while a run reads them",
        "65 before the next record or save; a replaced file is not read",
        "no network file system was tried",
    ),
    Row(
        "H4",
        "the disk is full, fails or forbids while data is prepared",
        "74 or 73, nothing left over",
        "a full tmpfs where one can be mounted; else injected errors only",
    ),
    Row("H5", "a source file edited with the same size and time", "65 with --check_sources"),
    Row("H6", "a process that makes tokens is killed", "76, its signal is named"),
    Row(
        "H7",
        "small files that unpack to gigabytes",
        "65, in 1.5 GiB of address space",
        "a parquet page whose header lies, and what `datasets` takes, are not bounded by us",
    ),
    Row("H8", "flips, cuts and swaps anywhere in a data cache", "65, or the same tokens"),
    Row(
        "F1",
        "a link in place of a file or folder of a run or study",
        "73, named; the target is untouched",
        "a folder that becomes a link while a run writes is not looked for",
    ),
    Row(
        "F2",
        "a pipe, a socket, a device or a folder in place of a file",
        "73 for outputs, 66 for inputs, at once",
    ),
    Row(
        "F2b",
        "a path in a folder of somebody else, a name that is too long or has a NUL",
        "66 for inputs, 73 for outputs, 64 for a NUL",
    ),
    Row(
        "F3",
        "the disk is full or fails at any file of a run",
        "73 or 74 with one line; a picture or a log costs a warning",
    ),
    Row(
        "F4",
        "the run folder is removed, renamed or replaced; `latest` is a folder",
        "73 or 74; says what is the case",
        "an unmounted disk is an ESTALE that is made up",
    ),
    Row("F5", "a strict umask", "nobody else can read what is written"),
    Row(
        "F6",
        "temporary files and folders of killed processes",
        "removed at the next start, unless their process lives",
        "one on a file system without locks stays",
    ),
    Row("X1", "signals of all kinds after the save, until the process is gone", "75"),
    Row("X2", "signals after the last step, and while results and pictures are written", "0"),
    Row(
        "X3",
        "a signal before the first step: during imports, or while ranks wait for each other",
        "75",
    ),
    Row(
        "X4",
        "a rank dies before it has come to the meeting place, or while it waits there",
        "76 within a second, 30 s on another machine",
        "a rank that dies before anybody has seen it: waited for until join_seconds",
    ),
    Row(
        "X5",
        "stdout or stderr closed, full, or without a reader, in a run and in every tool",
        "0; 74 where the output was the result",
    ),
    Row("X6", "SIGHUP, to a run and to a study; nohup", "75; 130"),
    Row(
        "X7",
        "NCCL aborts ranks of a node that is lost (134)",
        "requeued",
        "no NCCL here: a rank that ends with 134",
    ),
    Row("X8", "several tasks of srun or mpirun without a place among the ranks", "64"),
    Row("X9", "a launcher's variables that contradict each other or are no numbers", "64"),
    Row(
        "X10",
        "limits: open files, memory, threads, sizes that overflow",
        "74; 64",
        "CUDA out of memory: by the name of its error",
    ),
    Row("X11", "a run of a study is killed under its progress bar", "its reason names the signal"),
    Row(
        "X12",
        "`deepspeed`, or its process on a machine, is ended and the ranks are not",
        "75, saved",
    ),
    Row(
        "G1",
        "DeepSpeed waits for the device in every micro-batch",
        "goes on, without waiting",
        "calls are counted on a CPU",
    ),
    Row(
        "G2",
        "a first step that takes long, after a resume or an evaluation too",
        "goes on for ten times the patience",
    ),
    Row(
        "G3",
        "kernels that add in any order",
        "equal bits with speed.deterministic; 64 for another cuBLAS workspace",
        "equal bits on a GPU",
    ),
    Row("G4", "a host computation in every block backward", "once for each size"),
    Row(
        "G5",
        "no Triton, C compiler or Python.h on a GPU machine",
        "goes on with torch's operations and a warning; 64 with speed.compile",
    ),
    Row("G6", "a driver too old for torch", "64"),
    Row("G7", "a study that was given some GPUs of a machine", "stays in them"),
    Row(
        "G8",
        "an optimizer of the DeepSpeed JSON that cannot be compiled",
        "64",
        "the compiler's failure is injected",
    ),
    Row(
        "G9",
        "offload through memory that is not pinned",
        "pinned on a GPU; a CPU has nothing to pin",
    ),
    Row(
        "G10",
        "gradients of many micro-batches summed in bf16 or fp16",
        "fp32 with ZeRO 1 to 3",
        "ZeRO 0 sums in the precision of the weights: DeepSpeed knows nothing else there",
    ),
    Row(
        "G11",
        "a Triton kernel that does not compile, needs too much shared memory, adds atomically or "
        "in an order of the tuner's choice",
        "found by make test-slow",
        "compiled for sm_80 and sm_90, run on none",
    ),
    Row(
        "G12",
        "a tensor that stays on the CPU, or is read by the host, in a pass on a GPU",
        "found by make test",
        "the GPU is a fake one of torch: shapes without content",
    ),
    Row(
        "G13",
        "a collective that NCCL cannot carry, or more of them than a step needs",
        "found by make test",
        "looked at under gloo; NCCL at world size 1 by tools/gpu_check.py",
    ),
    Row(
        "G14",
        "kernels of tiles that are tuned anew by every process, or for another number of tokens",
        "once for each power of two of tokens",
        "what is timed is counted in its place",
    ),
)
