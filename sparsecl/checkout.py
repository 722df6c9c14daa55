"""Where the files beside the package lie: configs to start from, and the scripts of launch/ and
tools/. Only a checkout has them (`pip install -e .` included); an installed wheel must be given
them by path."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "launch" / "configs" / "demo.yaml"
ZERO2 = ROOT / "ds_configs" / "zero2.json"
