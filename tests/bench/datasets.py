"""A million rows of images: what a page of a list costs wherever it lies, what a start costs, what is held.

The rows are made in the ledger itself, without files behind them: what lists and starts read is the rows.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from appliance.api.payload import new_id
from appliance.datasets.filters import Filter
from appliance.datasets.pages import Cut
from appliance.ledger.database import open_writer
from appliance.vault import Container
from tests.bench import stand as cache
from tests.bench.report import Report
from tests.storing import ACTOR, Stand, stand

IMAGES, TIMES = 1_000_000, 30
FIRST = 1 << 31  # the position of the first image: labels have theirs before it
LABELS_SEARCHED = 5_000
_KINDS = (
    "all images",
    "half of them by a label",
    "one in a thousand by a label",
    "test images",
    "by a label, tests",
)


def run(report: Report) -> None:
    folder = cache.CACHE / "bench-datasets"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        labels = asyncio.run(_filled(folder))
        figures = _apart(folder, labels)
        empty = _apart(folder / "empty", {})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for kind in _KINDS:
        for place, (cpu, wall) in figures["pages"][kind].items():
            name = f"{kind}, {place}"
            bounded = place != "last page by its number"
            note = f"{wall:.1f} ms wall; the documents and their links included"
            report.figure(name, cpu, "CPU ms", at_most=5 if bounded else None, note=note)
    for name, (cpu, wall) in figures["walked"].items():
        report.figure(name, cpu, "CPU ms", note=f"{wall:.1f} ms wall; counted once, for the first page")
    cpu, wall = figures["scrub"]
    note = f"{wall:.1f} ms wall; every ten minutes"
    report.figure("a look for what is to be scrubbed, none due", cpu, "CPU ms", at_most=5, note=note)
    cpu, wall = figures["retention"]
    note = f"{wall:.1f} ms wall; all in turn, 2,000 each time"
    report.figure("a look for what has rested its days, none has", cpu, "CPU ms", note=note)
    report.figure(
        "start", figures["start"] - empty["start"], "CPU s", at_most=2, note="above an empty ledger's"
    )
    rss = figures["resident"] - empty["resident"]
    report.figure("resident memory", rss, "MiB", at_most=200, note="after all lists, above an empty ledger's")


async def _filled(folder: Path) -> dict[str, str]:
    """A dataset of a million images: every second one has a label, one in a thousand another, ten a third."""
    async with stand(folder) as one:
        dataset = await one.datasets.default(await one.customer())
        add = one.annotations.labels.add
        names = {name: await add(ACTOR, dataset, "category", name) for name in ("half", "rare", "third")}
        for number in range(LABELS_SEARCHED):
            await add(ACTOR, dataset, "tag", f"label number {number}")
        await one.datasets.change(ACTOR, dataset, retention_days=30)
        keys = one.datasets.keys(dataset)
        marked = {names[name].key: every for name, every in (("half", 2), ("rare", 1000), ("third", 3))}
        await asyncio.to_thread(_fill, folder / "ledger.db", dataset.number, keys, marked)
        return {name: label.id for name, label in names.items()}


def _fill(ledger: Path, dataset: int, keys: Container, labels: dict[int, int]) -> None:
    """In one transaction of a connection with the memory for it, which nobody has to wait for."""
    connection = open_writer(ledger)
    try:
        for pragma in ("cache_size = -1000000", "synchronous = OFF"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        base = (dataset << 32) + FIRST
        connection.executemany(
            "INSERT INTO images (key, id, dataset, created_at, format, width, height, size, thumbnail,"
            " content, meta_data, facet, rests_from)"
            " VALUES (?, ?, ?, 1800000000000, 'jpeg', 640, 480, 5000, 400, ?, ?, ?, 1800000000000)",
            (_row(base + number, dataset, keys, number) for number in range(IMAGES)),
        )
        connection.execute(
            "UPDATE datasets SET images = ?1, bytes = ?1 * 50000, next_position = ?2 WHERE number = ?3",
            (IMAGES, FIRST + IMAGES, dataset),
        )
        for label, every in labels.items():
            connection.execute(
                "INSERT INTO image_labels (label, facet, image, value)"
                " SELECT ?, facet, key, key % 100 FROM images WHERE key % ? = 0",
                (label, every),
            )
        connection.execute("COMMIT")
    finally:
        connection.close(True)


def _row(key: int, dataset: int, keys: Container, number: int) -> tuple[object, ...]:
    identity = new_id()
    blob = keys.seal("meta_data", b'{"own":%d}' % number, identity.encode())
    return key, identity, dataset, os.urandom(32), blob, int(number % 10 == 0)


def _apart(folder: Path, labels: dict[str, str]) -> Any:
    """What a process of its own measures: its start and its memory are those of nothing else."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.bench.datasets", str(folder), json.dumps(labels)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


async def _measure(folder: Path, labels: dict[str, str]) -> dict[str, object]:
    began = time.process_time()
    async with stand(folder) as one:
        figures: dict[str, object] = {"start": time.process_time() - began}
        if labels:
            figures["pages"] = {
                kind: await _pages(one, filtered)
                for kind, filtered in zip(
                    _KINDS,
                    (
                        Filter(),
                        Filter(labels=[labels["half"]]),
                        Filter(labels=[labels["rare"]]),
                        Filter(test=True),
                        Filter(labels=[labels["half"]], test=True),
                    ),
                    strict=True,
                )
            }
            figures["walked"] = await _walked(one, labels)
            figures["scrub"] = await _spent(lambda: one.upkeep.scrub(1.0), 5)
            figures["retention"] = await _spent(one.store.expire)
        figures["resident"] = _resident()
        return figures


async def _pages(one: Stand, filtered: Filter) -> dict[str, tuple[float, float]]:
    dataset = await one.datasets.default(await one.customer())
    count = (await one.annotations.gallery.page(dataset, filtered, Cut())).count
    places = {
        "first page": Cut(),
        "in the middle": Cut(number=count // 40, after=FIRST + IMAGES // 2),
        "last page": Cut(number=count // 20, after=FIRST + IMAGES - 20 * IMAGES // count),
        "last page by its number": Cut(number=count // 20),
    }

    async def page(cutting: Cut) -> None:
        found = await one.annotations.gallery.page(dataset, filtered, cutting)
        assert found.count == count
        assert len(found.rows) in {19, 20}
        assert json.dumps([each.image.id for each in found.rows])
        for each in found.rows:
            one.links.address(dataset, each.image)
            one.links.address(dataset, each.image, "thumbnail")

    return {place: await _spent(partial(page, cutting)) for place, cutting in places.items()}


async def _walked(one: Stand, labels: dict[str, str]) -> dict[str, tuple[float, float]]:
    dataset = await one.datasets.default(await one.customer())
    half, third, rare = labels["half"], labels["third"], labels["rare"]
    filters = {
        "two labels of 500,000 and 333,333 images": Filter(labels=[half, third]),
        "a label of 1,000 images and one of 500,000": Filter(labels=[half, rare]),
        "a range of values of 500,000": Filter(values={half: (10, 20)}),
        "neither of two labels": Filter(without=[half, third]),
    }
    images, names = one.annotations.gallery, one.annotations.labels
    figures = {
        name: await _spent(partial(images.page, dataset, filtered, Cut()), 3)
        for name, filtered in filters.items()
    }
    searching = partial(names.page, dataset, "recognition", Cut(), search="number 77")
    figures[f"a search in the names of {LABELS_SEARCHED:,} labels"] = await _spent(searching, 5)
    return figures


async def _spent(work: Callable[[], Awaitable[object]], times: int = TIMES) -> tuple[float, float]:
    """CPU of this process with all its threads, and wall: medians in milliseconds."""
    await work()
    spent = []
    for _ in range(times):
        cpu, wall = time.process_time(), time.perf_counter()
        await work()
        spent.append((1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)))
    return statistics.median(cpu for cpu, _ in spent), statistics.median(wall for _, wall in spent)


def _resident() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) / 1024


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measure(Path(sys.argv[1]), json.loads(sys.argv[2])))))
