"""Imports DeepSpeed as a run does; the server that starter.py forks imports this once."""

from sparsecl.engine.build import import_deepspeed

import_deepspeed()
