"""How every program of this project begins and ends.

    if __name__ == "__main__":
        command.start(main)

`Parser` reads its command line. `start` makes the standard streams safe, and ends the process with
the code of `main`, whatever comes meanwhile. `report` turns what `main` raises into one line on
stderr and an exit code.

What becomes of output: a reader that leaves (`| head`) is no fault, the program does what it was
asked for and says nothing. A stream that was closed (`>&-`) swallows what it gets. A stream that
fails (a full disk) is said once; the program goes on, and ends with 74 if its output was what it
was called for.
"""

import argparse
import atexit
import contextlib
import difflib
import io
import os
import select
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sparsecl.errors import (
    InvariantError,
    PeerLostError,
    Preempted,
    StorageError,
    UserError,
    shortage,
)
from sparsecl.files import out_of_reach

INTERRUPTED = 130  # as shells say it of a program that Ctrl-C ended

_Code = int | str | None
_EXPECTED = (UserError, InvariantError, PeerLostError, Preempted)


class Tell(argparse.Action):
    """Print what `const` returns, and stop."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        print(self.const())
        parser.exit()


class Parser(argparse.ArgumentParser):
    """The command line of a program and of its commands.

    --dry-run is --dry_run: an option may be written with dashes or underscores. Descriptions keep
    their lines, so examples can be copied. A mistake is one line, of the form of any other.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        lines = (self.description or "").splitlines()
        self.description = "\n".join(textwrap.fill(x, 100) if len(x) > 100 else x for x in lines)

    def add_overrides(self, **settings: Any) -> None:
        """--set KEY=VALUE ..., of a config; `settings` of add_argument."""
        settings = {"help": "overrides", **settings}
        self.add_argument(
            "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", **settings
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given: Sequence[str] = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._as_known(word) for word in given], namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            options = [name for name in self._option_string_actions if name.startswith("--")]
            name = rest[0].partition("=")[0]
            close = difflib.get_close_matches(name, options, n=1) if name[:1] == "-" else []
            way_out = f"did you mean {close[0]}?" if close else "--help shows what there is"
            self.error(f"{' '.join(rest)}: not understood; {way_out}")
        return found

    def error(self, message: str) -> NoReturn:
        complain(" ".join(message.split()))
        self.exit(2)  # as argparse and most programs do

    def _as_known(self, word: str) -> str:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        same = (o for o in self._option_string_actions if _dashed(o) == _dashed(name))
        return f"{next(same, name)}{equals}{value}"


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def report(
    action: Callable[[], int | None],
    *,
    speaks: Callable[[BaseException], bool] = lambda error: True,
) -> int:
    """Do `action`. Returns its exit code (None = 0), or that of what it raised.

    Args:
        speaks: whether this process says an expected error, or leaves it to another rank.
    """
    try:
        return action() or 0
    except _EXPECTED as error:
        if speaks(error):
            complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        found = shortage(error) or out_of_reach(error)
        if found is None:
            traceback.print_exc()
            return InvariantError.exit_code
        complain(str(found))
        return found.exit_code


def complain(text: str) -> None:
    """One line on stderr, of the same form from every program."""
    print(f"sparsecl: {text}", file=sys.stderr, flush=True)


def start(main: Callable[[], _Code], *, output_counts: bool = True) -> NoReturn:
    """Be the process of `main`, to its end.

    Args:
        output_counts: what is printed on stdout is what the program is called for; a run, whose
            results lie in files, does not need its stdout.
    """
    stdout = take_streams()
    try:
        code = main()
    except SystemExit as end:  # argparse
        code = end.code
    except KeyboardInterrupt:  # beside what `report` guards
        code = INTERRUPTED
    _flush()
    if output_counts and stdout.failure is not None and not code:
        code = StorageError.exit_code
    end_process(code)


def end_process(code: _Code) -> NoReturn:
    """End with `code`. What happens while an interpreter is torn down cannot change it.

    Python gives signals their default action back on its way out, and libraries of GPUs and
    sockets may abort there: a run that has saved must not end as one that was killed.
    """
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    _flush()
    os._exit(code or 0)


class Stream(io.FileIO):
    """A standard stream whose failure nobody has to catch."""

    def __init__(self, handle: int, name: str) -> None:
        super().__init__(handle, "w", closefd=False)
        self.failure: OSError | None = None
        """Why it cannot be written; a reader that has left is no failure."""

        self._is_lost = False
        self._name = name

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # pyright: ignore
        if not self._is_lost:
            try:
                while (written := super().write(data)) is None:  # a terminal that does not block
                    select.select((), (self,), ())
                return written
            except BrokenPipeError:
                self._is_lost = True
            except OSError as error:
                self._is_lost, self.failure = True, error
                line = f"sparsecl: {self._name} cannot be written ({error.strerror})\n"
                with contextlib.suppress(OSError):
                    os.write(2, line.encode())
        return memoryview(data).nbytes


def take_streams() -> Stream:
    """Put a `Stream` under sys.stdout and sys.stderr. Returns that of stdout."""
    # A closed place would be taken by the next file that is opened, and get what C libraries print.
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    _flush()
    sys.stdout, raw = _text(1, "standard output", sys.stdout)
    sys.stderr, _ = _text(2, "standard error", sys.stderr)
    return raw


def _text(handle: int, name: str, before: Any) -> tuple[io.TextIOWrapper, Stream]:
    """Text on top of a Stream, as `before` was made; None = the process was started without."""
    raw = Stream(handle, name)
    at_once = handle == 2 or before is None or before.line_buffering or before.write_through
    encoding = "utf-8" if before is None else before.encoding
    # Names are the user's: a letter that the terminal does not have is shown by its number.
    text = io.TextIOWrapper(
        io.BufferedWriter(raw),  # pyright: ignore
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=at_once,
    )
    return text, raw


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, failing, closed
            stream.flush()
