"""./dev run: prepare the demo state, start the real daemon on it, insert photos, show a query, stay up."""

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from demo import photos
from demo.client import Client, Refused
from demo.state import DemoState, StepFailed, prepare

READY_SECONDS = 120.0
EXAMPLE = "flower/200-100.jpg"  # a crop whose neighbours are seen to be right


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Daemon:
    """`appliance serve` in a process group of its own, so that a Ctrl-C reaches it once, through here.

    A first SIGINT, SIGTERM or SIGHUP asks it to drain, a second one ends it at once.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.stopping = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        again, self.stopping = self.stopping, True
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    def start(self, state: DemoState) -> None:
        log = os.open(state.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            self.process = subprocess.Popen(
                state.command("serve"), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        finally:
            os.close(log)
        if self.stopping:  # the signal came between the decision and the start
            self.process.terminate()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def wait(self) -> int:
        """The exit code, 128 + N where signal N ended it."""
        assert self.process is not None
        code = self.process.wait()
        return 128 - code if code < 0 else code


def await_ready(daemon: Daemon, client: Client) -> bool:
    """True once /readyz says so; False when the daemon ended or is not ready within READY_SECONDS."""
    deadline = time.monotonic() + READY_SECONDS
    while daemon.alive() and time.monotonic() < deadline:
        if client.ready():
            return True
        time.sleep(0.05)
    return False


def ended_children() -> float:
    """CPU time of children that have ended; `./dev` became this process, so at first those that installed."""
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def cpu_seconds(pid: int) -> float:
    """CPU time so far of this process, its ended children, and the process tree below `pid`."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) + ended_children()
    tree = [pid]
    for member in tree:
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            used += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            for thread in Path(f"/proc/{member}/task").iterdir():
                tree += map(int, (thread / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return used


def show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        filled = 30 * done // max(total, 1)
        end = "\n" if done == total else "\r"
        print(f"inserting [{'#' * filled:<30}] {done}/{total}", end=end, file=sys.stderr, flush=True)


def insert_missing(client: Client, wanted: list[photos.Photo]) -> None:
    """Insert what the collection does not hold yet; name each photo that is refused, and why."""
    present = client.present([photo.id for photo in wanted])
    missing = [photo for photo in wanted if photo.id not in present]
    if present:
        tell(f"{len(present)} of {len(wanted)} photos are there already")
    done = 0
    for batch in client.batches(missing):
        for name, reason in client.insert(batch):
            tell(f"skipped {name}: {reason}")
        done += len(batch)
        show_progress(done, len(missing))


def show_query(client: Client, state: DemoState, photo_id: str, picture: Path) -> None:
    """One query by a stored photo with its answer, then lines to paste."""
    print(f'\nPOST /similarity/photos/v2/visualKNN {{"query_record": {{"_id": "{photo_id}"}}, "k": 5}}')
    for near, distance in client.similar(photo_id, 5):
        print(f"    {distance:.4f}  {near}")
    token, collection = f"$(cat '{state.token_file}')", f"$(cat '{state.collection_file}')"
    kind = "image/" + picture.suffix.lower().strip(".").replace("jpg", "jpeg")
    print(
        f"""
Search with any photo of yours:
    curl -H "Authorization: Token {token}" -H "collection-id: {collection}" \\
        -H 'Content-Type: {kind}' \\
        --data-binary @'{picture}' 'http://localhost:{client.port}/similarity/photos/v2/visualKNN?k=5'
Recognise what is on it:
    curl -H "Authorization: Token {token}" \\
        -H 'Content-Type: {kind}' \\
        --data-binary @'{picture}' http://localhost:{client.port}/photo/tags/v2/tags
The official client, endpoint changed and nothing else:
    SimilarityPhotosClient(token, collection_id, endpoint="http://localhost:{client.port}/localhost/similarity/photos/v2/")
"""
    )


def show_places(state: DemoState, client: Client) -> None:
    print(f"state     {state.folder}  (daemon.log, demo.token, demo.collection, demo.task)")
    print(f"answers   http://localhost:{client.port}/")
    for address in client.operator_addresses(state.folder / "operator.sock"):
        print(f"operator  {address}")
    print(f"command   {' '.join(state.command('status'))}", flush=True)


def fill_and_show(state: DemoState, client: Client, folder: Path | None) -> None:
    wanted = list(photos.of_folder(folder) if folder else photos.crops())
    if not wanted:
        tell(f"no photos below {folder}")
    insert_missing(client, wanted)
    shown = client.present([photo.id for photo in wanted])
    chosen = EXAMPLE if EXAMPLE in shown else next((photo.id for photo in wanted if photo.id in shown), None)
    show_places(state, client)
    if chosen is not None:
        show_query(client, state, chosen, folder / chosen if folder else photos.file_of("chelsea"))
    tell("Ctrl-C stops it.")


def run(port: int, folder: Path, photo_folder: Path | None) -> int:
    daemon = Daemon()
    began, installing = time.monotonic(), ended_children()
    try:
        state = prepare(folder, port, tell)
    except (StepFailed, OSError) as refusal:
        if not daemon.stopping:
            tell(f"dev run: {refusal}")
        return 1
    if daemon.stopping:
        return 0
    client = Client(port, state)
    daemon.start(state)
    if await_ready(daemon, client):
        cpu = cpu_seconds(daemon.pid) - installing
        tell(f"ready after {time.monotonic() - began:.1f} s, {cpu:.1f} s of CPU over all processes")
        while_alive(daemon, lambda: fill_and_show(state, client, photo_folder))
    elif daemon.alive():
        tell(f"dev run: not ready after {READY_SECONDS:.0f} s; see {state.log}")
        daemon.stopping = True
        os.kill(daemon.pid, signal.SIGTERM)
        daemon.wait()
        return 1
    code = daemon.wait()
    if not daemon.stopping:
        tell(f"dev run: the daemon ended with {code}. The end of {state.log}:")
        tell(state.log.read_text(errors="replace")[-4000:])
    return code


def while_alive(daemon: Daemon, act: Callable[[], None]) -> None:
    """Run `act`; a connection that breaks because the daemon is going away is no news of its own."""
    try:
        act()
    except Refused as refusal:
        if daemon.stopping or not daemon.alive():
            return
        tell(f"dev run: {refusal}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev run", description=__doc__)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--state", type=Path, default=Path(".state"))
    parser.add_argument("--caller", type=Path, default=Path.cwd(), help=argparse.SUPPRESS)
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", help="photos to insert, recursively"
    )
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a pipe's reader sees it now too
    photo_folder = arguments.caller / arguments.folder if arguments.folder else None
    if photo_folder is not None and not photo_folder.is_dir():
        parser.error(f"{arguments.folder} is no folder")
    return run(arguments.port, arguments.caller / arguments.state, photo_folder)


raise SystemExit(main())
