"""What tools/bench.py measures: one file for each question."""
