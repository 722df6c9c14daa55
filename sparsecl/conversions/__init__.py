"""The commands of tools/convert.py, one file each: `add_parser(subparsers)` and `run(args)`."""
