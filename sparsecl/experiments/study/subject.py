"""What the runs of a study are."""

from typing import Literal

Subject = Literal["text", "stream"]
"""Runs of launch/train.py on text, or of launch/stream.py on a stream of tasks."""
