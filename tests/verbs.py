"""The command line in processes that are forked from one interpreter, which has imported it already.

Of the two seconds of CPU time that a verb takes without a daemon most are imports, and the suite runs
hundreds of verbs. What is forked does all that `appliance` does.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from appliance.cli import main
from demo.state import DemoState

ROOT_FOLDER = Path(__file__).parents[1]


@dataclass(frozen=True)
class ForkedState(DemoState):
    """A demo state whose verbs are forked; `command` is still that of a process of its own."""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return _interpreter().run(["--config", str(self.config), *words])


class _Interpreter:
    """The process that verbs are forked from, one after the other."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.verbs"],
            cwd=ROOT_FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._turn:
            print(json.dumps(words), file=self._process.stdin, flush=True)
            code, out, err = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(words, code, out, err)

    def end(self) -> None:
        self._process.communicate()


@functools.cache
def _interpreter() -> _Interpreter:
    interpreter = _Interpreter()
    atexit.register(interpreter.end)
    return interpreter


def _fork_verbs() -> None:
    importlib.import_module("appliance.daemon")
    for line in sys.stdin:
        out, err = os.memfd_create("out"), os.memfd_create("err")
        if (verb := os.fork()) == 0:
            _run(json.loads(line), out, err)
        _, status = os.waitpid(verb, 0)
        said = [Path(f"/proc/self/fd/{fd}").read_text(errors="replace") for fd in (out, err)]
        print(json.dumps([os.waitstatus_to_exitcode(status), *said]), flush=True)
        for fd in (out, err):
            os.close(fd)


def _run(words: list[str], out: int, err: int) -> NoReturn:
    """What the `appliance` script does, with its output in `out` and `err`; ends the process."""
    for fd, instead in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(fd, instead)
    try:
        sys.exit(main(words))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:  # noqa: BLE001 - as the interpreter would
        sys.excepthook(*sys.exc_info())
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _fork_verbs()
