"""Stands in for launch/train.py: runs until FOLDER/WHEN is there, or saves on a signal.

python train.py FOLDER WHEN CODE [NAME...]
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

NAMES = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS"


def main() -> int:
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: asked.append(number))
    signal.signal(signal.SIGUSR2, lambda *_: os._exit(76))
    folder, code = Path(sys.argv[1]), int(sys.argv[3])
    rank, restarts = os.environ["RANK"], os.environ.get("SLURM_RESTART_COUNT", "0")
    facts = {name: os.environ[name] for name in NAMES.split()}
    facts |= {"restarts": restarts, "argv": sys.argv[4:], "pid": os.getpid()}
    (folder / f"rank{rank}.restart{restarts}.json").write_text(json.dumps(facts))
    print(f"rank {rank} begins", flush=True)
    while not (folder / sys.argv[2]).exists() and not asked:
        time.sleep(0.05)
    if asked:
        print(f"rank {rank} has saved", flush=True)
        return 75
    return code


if __name__ == "__main__":
    sys.exit(main())
