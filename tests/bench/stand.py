"""A demo state with more models, and what a load client sends to it."""

import base64
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from demo.state import DemoState, prepare
from tests.bench import graphs, load
from tests.running import RunningAppliance, free_port

CACHE = Path(__file__).parents[2] / ".cache"
STARTER = "efficientnet-lite0"
CONNECTIONS = 4096  # from one address: what an overloaded appliance does with requests is to be seen


@dataclass(frozen=True)
class Stand:
    """`tasks` are the ids that classify by each model; `operator_port` has the metrics."""

    state: DemoState
    tasks: dict[str, str]
    operator_port: int

    def model(self, name: str) -> Path:
        (found,) = (self.state.folder / "bundles").glob(f"{name}@*/model.onnx")
        return found

    def raw(self, name: str, image: bytes) -> bytes:
        """A request to classify an image that is the body."""
        path = f"/recognition/v2/classify?task_id={self.tasks[name]}"
        return load.request(path, image, self._headers("image/jpeg"))

    def records(self, name: str, image: bytes, count: int = 1) -> bytes:
        """A request to classify so many images in JSON."""
        record = {"_base64": base64.b64encode(image).decode()}
        body = json.dumps({"task_id": self.tasks[name], "records": [record] * count}).encode()
        return load.request("/recognition/v2/classify", body, self._headers("application/json"))

    def _headers(self, content_type: str) -> dict[str, str]:
        return {"Authorization": f"Token {self.state.token}", "Content-Type": content_type}


def build(folder: Path, *names: str) -> Stand:
    """A new state in `folder` with the starter backbone and these models of `graphs.MODELS`."""
    shutil.rmtree(folder, ignore_errors=True)
    state = prepare(folder / "state", free_port(), lambda _: None)
    widened = re.sub(
        r"^\[api\]$",
        f"[api]\nmax_connections_per_address = {CONNECTIONS}",
        state.config.read_text(),
        flags=re.MULTILINE,
    )
    operator_port = free_port()
    found = re.subn(
        r'^listen = "127\.0\.0\.1:0"$', f'listen = "127.0.0.1:{operator_port}"', widened, flags=re.MULTILINE
    )
    assert found[1] == 1, "the demo's operators are not where they are looked for"
    state.config.write_text(found[0])
    tasks = {STARTER: state.task}
    for name in names:
        tasks[name] = str(state.ask("bundle", "install", str(graphs.bundle(name, folder / name)))["task"])
    return Stand(state, tasks, operator_port)


def remove_starter(built: Stand) -> None:
    """Leaves the other models alone in the state, with nothing that needs the starter backbone."""
    built.state.ask("collection", "remove", built.state.collection)
    built.state.ask("bundle", "remove", STARTER, "1")
    del built.tasks[STARTER]


def processes(appliance: RunningAppliance) -> dict[str, list[int]]:
    """The process ids of the daemon, its decoders and its device worker, which it starts in this order."""
    daemon, *children = appliance.processes()
    *decoders, device = sorted(children, key=lambda process: process.create_time())
    return {"daemon": [daemon.pid], "decoders": [one.pid for one in decoders], "device": [device.pid]}
