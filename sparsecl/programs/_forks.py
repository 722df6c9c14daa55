"""The process that runs of a study on a CPU are forked from (experiments/running/warm.py asks it).

It imports what a run imports, once: on text, or on a stream, as its one word says. Then each line
on stdin is a request, and each line on stdout the answer: it forks a run, or tells how one has
ended. It ends with its stdin, its runs with it.
"""

import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":  # works from a checkout that was never installed
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from sparsecl import command  # noqa: E402
from sparsecl.experiments.running.local import die_with_parent  # noqa: E402
from sparsecl.opening import plain  # noqa: E402

PRELOAD = {
    "text": (
        "torch._dynamo",  # of torch's optimizers, which import it as they are built
        "torch.utils.tensorboard",
        "sparsecl.engine.run",
        "sparsecl.experiments.plots",
    ),
    "stream": (
        "torch.utils.tensorboard",
        "sparsecl.streams.run",
        "sparsecl.experiments.plots.streams",
    ),
}
"""What a run imports, by what it is on."""


def serve() -> NoReturn:
    """Import, then answer until nobody asks any more."""
    # Nothing but answers goes through the pipe.
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        _import_all()
        me, codes = os.getpid(), dict[int, int | None]()
        for line in iter(sys.stdin.buffer.readline, b""):
            request = json.loads(line)
            if "poll" in request:
                run = request["poll"]
                if codes[run] is None:
                    pid, status = os.waitpid(run, os.WNOHANG)
                    codes[run] = os.waitstatus_to_exitcode(status) if pid else None
                answer = codes[run]
            else:
                answer = os.fork()
                if answer == 0:
                    answers.close()
                    _be(request, me)
                codes[answer] = None
            answers.write(json.dumps([request["number"], answer]).encode() + b"\n")
    os._exit(0)


def _import_all() -> None:
    from sparsecl import dist
    from sparsecl.programs import train

    train.quiet()  # variables that libraries read while they are imported
    os.environ.setdefault("DS_ACCELERATOR", dist.device().type)
    for name in PRELOAD[sys.argv[1]]:
        importlib.import_module(name)
    if sys.argv[1] == "text":
        from sparsecl.engine.build import import_deepspeed

        import_deepspeed()


def _be(request: dict[str, Any], parent: int) -> NoReturn:
    """In the fork: be `python SCRIPT OPTIONS` in that folder, whose output is appended to a log."""
    die_with_parent(parent)
    os.setsid()
    with open(request["log"], "ab", opener=plain) as log:
        for old, new in ((os.open(os.devnull, os.O_RDONLY), 0), (log.fileno(), 1), (1, 2)):
            os.dup2(old, new)
    os.chdir(request["folder"])
    sys.argv = request["words"]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    code: Any = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:  # what follows the fork in `serve` is never this process's
        command.end_process(code)


if __name__ == "__main__":
    serve()
