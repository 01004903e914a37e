"""What the API costs on top of the libraries under it: CPU time of one image and of one search, as ratios.

CPU time is that of the daemon and its children, idle time taken off; the client's is not in it. The libraries
are driven in this process in turns with the API, so that a busy machine slows both.
"""

import asyncio
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import onnxruntime
from PIL import Image

from appliance import config
from appliance.accounts.audit import Actor
from appliance.accounts.customers import CustomerId
from appliance.ledger import Ledger
from appliance.metrics import Registry
from appliance.recognition.decode import decode
from appliance.recognition.preprocessing import Preprocessing
from appliance.search.collections import Collections, NewRecord
from appliance.vault import open_keyring
from demo import photos
from demo.state import DemoState, prepare
from tests import images
from tests.bench.report import Report
from tests.running import RunningAppliance, free_port
from tests.searching import space

FOLDER = Path(".cache/bench-api")
SIZE = 224
RECORDS = 10_000
DIM = 512
K = 10
TURNS = 5
IMAGES_A_TURN = 30
QUERIES_A_TURN = 300


def run(report: Report) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    try:
        starts(report)
        state = prepare(FOLDER / "state", free_port(), print)
        vectors = clustered(RECORDS)
        collection = asyncio.run(fill(state, vectors))
        with RunningAppliance(state, state.port) as appliance:
            query(appliance, collection, 0)  # opens the collection
            one_image(report, appliance)
            one_search(report, appliance, collection, vectors)
            report.figure(
                "resident memory, all processes", appliance.resident_bytes() / 2**20, "MiB",
                note=f"{RECORDS} records open; shared pages counted in each",
            )  # fmt: skip
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


def starts(report: Report) -> None:
    """The whole of ./dev run on a state that is already there, until it says it is ready."""
    command = ["./dev", "run", "--port", str(free_port()), "--state", str(FOLDER / "demo")]
    for kind in ("first", "second"):
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as running:
            assert running.stderr is not None
            said = re.compile(r"ready after ([\d.]+) s, ([\d.]+) s of CPU")
            wall, cpu = next(match.groups() for line in running.stderr if (match := said.search(line)))
            for line in running.stderr:
                if "Ctrl-C" in line:
                    break
            running.send_signal(signal.SIGTERM)
            running.stderr.read()
        if kind == "second":
            report.figure(
                "second start of ./dev run, CPU", float(cpu), "s", at_most=2.5, note=f"wall {wall} s"
            )


def one_image(report: Report, appliance: RunningAppliance) -> None:
    with Image.open(photos.file_of("astronaut")) as picture:
        encoded = images.encoded(picture.convert("RGB"), "JPEG", quality=92)
    (model,) = (appliance.state.folder / "bundles").rglob("model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    pixels = np.asarray(unpacked(encoded).pixels)[None]
    feed = {session.get_inputs()[0].name: pixels}
    headers = appliance.headers(content_type="image/jpeg")
    path = f"/recognition/v2/classify?task_id={appliance.task}"

    def classify(_: int) -> None:
        answer = appliance.call("POST", path, encoded, headers=headers)
        assert answer.status == 200, answer.body[:300]

    cost = in_turns(
        appliance,
        IMAGES_A_TURN,
        {
            "api": classify,
            "session": lambda _: session.run(["logits"], feed),
            "decode": lambda _: unpacked(encoded),
        },
    )
    report.figure(
        "image through the API, CPU", cost["api"], "ms", note=f"JPEG 512x512, {len(encoded) >> 10} KiB"
    )
    report.figure(
        "the same ONNX session directly, CPU", cost["session"], "ms", note="one thread, batch of one"
    )
    report.figure("decoding the same image directly, CPU", cost["decode"], "ms")
    report.figure("API / session", cost["api"] / cost["session"], "x")
    report.figure("API / (session + decoding)", cost["api"] / (cost["session"] + cost["decode"]), "x")
    report.figure("images through the API, wall", wall_rate(classify, 120), "1/s", note="4 clients")


def one_search(report: Report, appliance: RunningAppliance, collection: str, vectors: Any) -> None:
    search = config.Search()
    index = hnswlib.Index(space="ip", dim=DIM)
    index.init_index(max_elements=RECORDS, M=search.m, ef_construction=search.ef_construction)
    index.add_items(vectors, np.arange(RECORDS), num_threads=-1)
    stats = appliance.call(
        "GET", f"/appliance/v1/collections/{collection}/stats", headers=appliance.headers()
    )
    index.set_ef(stats.document["ef"] or search.ef)
    connection = http.client.HTTPConnection("127.0.0.1", appliance.port, timeout=20)
    headers = appliance.headers(collection_id=collection)
    numbers = itertools.count()

    def through_api(_: int) -> None:
        body = json.dumps({"query_record": {"_id": str(next(numbers) % RECORDS)}, "k": K})
        connection.request("POST", "/similarity/photos/v2/visualKNN", body, headers)
        answer = json.loads(connection.getresponse().read())
        assert len(answer["answer_records"]) == K

    cost = in_turns(
        appliance,
        QUERIES_A_TURN,
        {
            "api": through_api,
            "hnswlib": lambda number: index.knn_query(vectors[number], k=K, num_threads=1),
        },
    )
    connection.close()
    report.figure(
        "k-NN query through the API, CPU", cost["api"], "ms", note=f"k={K}, {RECORDS} records, by _id"
    )
    report.figure("the same query to hnswlib directly, CPU", cost["hnswlib"], "ms")
    report.figure("API / hnswlib", cost["api"] / cost["hnswlib"], "x")
    rate = wall_rate(lambda number: query(appliance, collection, number), 400)
    report.figure("k-NN queries through the API, wall", rate, "1/s", note="4 clients, a connection each call")


def query(appliance: RunningAppliance, collection: str, number: int) -> None:
    document = {"query_record": {"_id": str(number)}, "k": K}
    answer = appliance.post("/similarity/photos/v2/visualKNN", document, collection_id=collection)
    assert answer.status == 200, answer.body[:300]


def in_turns(
    appliance: RunningAppliance, times: int, acts: dict[str, Callable[[int], Any]]
) -> dict[str, float]:
    """Milliseconds of CPU of one call of each act: the median of TURNS turns of `times` calls.

    The act named "api" is charged to the daemon's processes, less what they use when idle, the others to
    this one.
    """
    spent: dict[str, list[float]] = {name: [] for name in acts}
    for act in acts.values():
        for number in range(times):
            act(number)
    idle = settled(appliance)
    for _ in range(TURNS):
        for name, act in acts.items():
            here, there, began = time.process_time(), appliance.cpu_seconds(), time.monotonic()
            for number in range(times):
                act(number)
            used = time.process_time() - here
            if name == "api":
                used = appliance.cpu_seconds() - there - idle * (time.monotonic() - began)
            spent[name].append(1000 * used / times)
    return {name: float(np.median(turns)) for name, turns in spent.items()}


def settled(appliance: RunningAppliance) -> float:
    """The share of a core that the daemon uses when idle, once its background work (graphs) is done."""
    deadline = time.monotonic() + 120
    while True:
        before, began = appliance.cpu_seconds(), time.monotonic()
        time.sleep(1)
        idle = (appliance.cpu_seconds() - before) / (time.monotonic() - began)
        if idle < 0.05:
            return idle
        assert time.monotonic() < deadline, f"the daemon does not come to rest ({idle:.0%} of a core)"


def wall_rate(act: Callable[[int], Any], times: int) -> float:
    """Calls a second with four of them on the way."""
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(act, range(times)):
            pass
    return times / (time.monotonic() - began)


def unpacked(encoded: bytes) -> Any:
    recognition = config.Recognition()
    return decode(
        encoded, Preprocessing(size=SIZE), max_pixels=recognition.max_pixels, max_side=recognition.max_side
    )


def clustered(count: int) -> Any:
    """Unit vectors around 200 centres, as embeddings of photos lie."""
    rng = np.random.default_rng(11)
    vectors = rng.normal(size=(200, DIM))[rng.integers(200, size=count)] + 0.7 * rng.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


async def fill(state: DemoState, vectors: Any) -> str:
    """A collection of the demo's customer with these vectors, written into the state folder directly."""
    registry = Registry()
    actor = Actor("system", "bench")
    (row,) = (one for one in state.ask("collection", "list")["collections"])
    async with Ledger(state.folder, registry) as ledger:
        root = bytearray((state.folder / "root.key").read_bytes())
        keyring = await open_keyring(state.folder, ledger, root)
        graphs, snapshots = state.folder / "graphs", state.folder / "snapshots"
        clock = time.time  # noqa: TID251
        with space(state.folder) as room:
            async with Collections(
                ledger,
                keyring,
                config.Search(),
                clock,
                registry,
                graphs=graphs,
                snapshots=snapshots,
                space=room,
            ) as collections:
                customer = CustomerId(row["customer"])
                made = await collections.add(actor, customer, f"bench {os.getpid()}", row["backbone"], DIM)
                opened = await collections.open(customer, made.id)
                for start in range(0, len(vectors), 500):
                    batch = [
                        NewRecord(str(start + i), one, {"n": i})
                        for i, one in enumerate(vectors[start : start + 500])
                    ]
                    await opened.insert(actor, batch)
        keyring.wipe()
    return made.id
