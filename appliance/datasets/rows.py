"""The rows of datasets and images: statements and what they give, for use inside the ledger's acts."""

from collections.abc import Iterable, Sequence
from typing import Any

from appliance.accounts.audit import Actor, Event, record
from appliance.accounts.customers import CustomerId
from appliance.accounts.endings import CUSTOMER_SUSPENDED_AT
from appliance.accounts.forward import resting
from appliance.datasets.records import Dataset, DatasetId, Image, ImageId, Place, Visibility
from appliance.errors import NotFound
from appliance.ledger import Connection

_STORE = Actor("system", "store")
_DAY = 86_400_000
_IN_TURN = 2000
_IMAGE = (
    "images.key, images.id, datasets.id, datasets.customer, images.created_at, images.format, images.width,"
    " images.height, images.size, images.thumbnail, images.damaged, images.facet"
)
PLACE = "datasets.number, datasets.id, datasets.customer, datasets.name IS NULL"
_LIVING = (
    f"SELECT {_IMAGE} FROM images JOIN datasets ON datasets.number = images.dataset"  # noqa: S608
    " WHERE images.deleted_at IS NULL AND datasets.erased_at IS NULL"
)


def image(connection: Connection, customer: CustomerId | None, image_id: str) -> Image | None:
    """The image of this id, unless it is another customer's; of anybody's with None."""
    found = connection.execute(
        f"{_LIVING} AND images.id = ?1 AND (?2 IS NULL OR datasets.customer = ?2)", (image_id, customer)
    ).fetchone()
    return None if found is None else _image(found)


def linked(connection: Connection, image_id: str) -> tuple[Image, Visibility, int] | None:
    """The image of this id, whosever it is, with the visibility and the epoch of its dataset; None also for
    a suspended customer's.
    """
    found = connection.execute(
        f"SELECT {_IMAGE}, datasets.visibility, datasets.epoch FROM images"  # noqa: S608
        " JOIN datasets ON datasets.number = images.dataset"
        " JOIN customers ON customers.id = datasets.customer"
        " WHERE images.id = ? AND images.deleted_at IS NULL AND datasets.erased_at IS NULL"
        f" AND {CUSTOMER_SUSPENDED_AT} IS NULL",
        (image_id,),
    ).fetchone()
    return None if found is None else (_image(found[:12]), found[12], found[13])


def is_restricted(connection: Connection, dataset: int) -> bool:
    """Whether its images leave to nobody but their customer, sealed."""
    query = "SELECT 1 FROM datasets WHERE number = ? AND visibility = 'restricted'"
    return bool(connection.execute(query, (dataset,)).get)


def ran_before(connection: Connection) -> bool:
    """Whether an earlier run had the store open. The audit log is not asked: this one may have written it."""
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM latest_time)").get)


def usage(connection: Connection, customer: CustomerId) -> tuple[int, int]:
    """How many images a customer has in all datasets, and their bytes without thumbnails."""
    query = (
        "SELECT coalesce(sum(images), 0), coalesce(sum(bytes), 0) FROM datasets"
        " WHERE customer = ? AND erased_at IS NULL"
    )
    found: tuple[int, int] | None = connection.execute(query, (customer,)).fetchone()
    return found or (0, 0)


def images(connection: Connection, dataset: int, after: int, most: int) -> list[Image]:
    """Images of a dataset in order of upload, those with a key above `after`."""
    return [image for image, _ in images_and_sources(connection, dataset, after, most)]


def images_and_sources(
    connection: Connection, dataset: int, after: int, most: int
) -> list[tuple[Image, bytes | None]]:
    """As `images`, each with its sealed source."""
    found = connection.execute(
        f"SELECT {_IMAGE}, images.source FROM images JOIN datasets ON datasets.number = images.dataset"  # noqa: S608
        " WHERE images.deleted_at IS NULL AND datasets.erased_at IS NULL"
        " AND images.key > ?1 AND images.key < (?2 + 1) << 32 ORDER BY images.key LIMIT ?3",
        (max(after, (dataset << 32) - 1), dataset, most),
    )
    return [(_image(row[:12]), row[12]) for row in found]


def by_name(connection: Connection, dataset: int, named: bytes) -> Image | None:
    """The image of a dataset that was imported under the name of this hash."""
    found = connection.execute(
        f"{_LIVING} AND images.dataset = ? AND images.named = ?", (dataset, named)
    ).fetchone()
    return None if found is None else _image(found)


def is_nameless(connection: Connection, image: Image) -> bool:
    """Whether it came by another way than an import."""
    return bool(connection.execute("SELECT named IS NULL FROM images WHERE key = ?", (image.key,)).get)


def set_name(connection: Connection, image: Image, source: bytes, named: bytes) -> None:
    """Under which name it was imported."""
    connection.execute("UPDATE images SET source = ?, named = ? WHERE key = ?", (source, named, image.key))


def described(connection: Connection, keys: Iterable[int]) -> dict[int, tuple[Image, Place, bytes | None]]:
    """Images by their keys, with their places and their sealed metadata; those being deleted are left out."""
    wanted = list(keys)
    found = connection.execute(
        f"SELECT {_IMAGE}, {PLACE}, images.meta_data FROM images"  # noqa: S608
        " JOIN datasets ON datasets.number = images.dataset"
        " WHERE images.deleted_at IS NULL AND datasets.erased_at IS NULL"
        f" AND images.key IN ({marks(wanted)})",
        wanted,
    )
    return {row[0]: (_image(row[:12]), place(row[12:16]), row[16]) for row in found}


def place(row: tuple[Any, ...]) -> Place:
    """What the columns PLACE say."""
    number, dataset, customer, is_default = row
    return Place(number, dataset, customer, bool(is_default))


def marks(values: Sequence[object]) -> str:
    """As many question marks."""
    return ", ".join("?" * len(values))


def by_content(connection: Connection, dataset: int, content: bytes) -> ImageId | None:
    """The image of a dataset that was uploaded with the same bytes."""
    found: str | None = connection.execute(
        "SELECT id FROM images WHERE dataset = ? AND content = ? AND deleted_at IS NULL", (dataset, content)
    ).get
    return None if found is None else ImageId(found)


def add_image(
    connection: Connection,
    dataset: int,
    image: Image,
    content: bytes,
    meta_data: bytes | None,
    *,
    rests_from: int,
) -> int:
    """Insert a row for `image`, whose key is made here and returned; counts follow.

    It rests from when so much is believed, in unix milliseconds.
    """
    connection.execute(
        "UPDATE datasets SET images = images + 1, bytes = bytes + ? WHERE number = ?", (image.size, dataset)
    )
    key = next_key(connection, dataset)
    connection.execute(
        "INSERT INTO images (key, id, dataset, created_at, format, width, height, size, thumbnail, content,"  # noqa: S608
        f" meta_data, facet, rests_from) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {resting('?13')})",
        (
            key,
            image.id,
            dataset,
            image.created_at,
            image.format,
            image.width,
            image.height,
            image.size,
            image.thumbnail,
            content,
            meta_data,
            image.facet,
            rests_from,
        ),
    )
    return key


def next_key(connection: Connection, dataset: int) -> int:
    """A key for a new row of a dataset, above all that it has. Raises NotFound when the dataset is erased."""
    position = connection.execute(
        "UPDATE datasets SET next_position = next_position + 1 WHERE number = ? AND erased_at IS NULL"
        " RETURNING next_position - 1",
        (dataset,),
    ).get
    if position is None:
        raise NotFound("no such dataset")
    return (dataset << 32) + int(position)


def expired(connection: Connection, now: int, most: int, after: int) -> tuple[list[Image], int]:
    """Images that are older than their datasets keep them, and the next `after`.

    Images lie in order of upload, so that of each dataset the first ones are looked at, `most` in all. A
    clock that was ahead may have been set right between them: of those behind `after` some are looked at too,
    all of them in turn.
    """
    found: dict[int, Image] = {}
    kept: list[Any] = connection.execute(
        "SELECT number, retention_days FROM datasets WHERE retention_days IS NOT NULL AND erased_at IS NULL"
    ).fetchall()
    if not kept:
        return [], 0
    for number, days in kept:
        oldest = connection.execute(
            f"{_LIVING} AND images.rests_from <= {resting('?3')} - ?4 AND images.key IN ("  # noqa: S608
            "SELECT key FROM images WHERE deleted_at IS NULL AND key >= ?1 << 32 AND key < (?1 + 1) << 32"
            " ORDER BY key LIMIT ?2) ORDER BY images.key",
            (number, most - len(found), now, days * _DAY),
        )
        found |= {row[0]: _image(row) for row in oldest}
    end: Any = connection.execute(
        "SELECT max(key) FROM (SELECT key FROM images WHERE key > ? ORDER BY key LIMIT ?)", (after, _IN_TURN)
    ).get
    behind: list[Any] = connection.execute(
        f"{_LIVING} AND images.key > ?1 AND images.key <= ?2"
        f" AND images.rests_from <= {resting('?3')} - datasets.retention_days * ?4"
        " ORDER BY images.key LIMIT ?5",
        (after, end or 0, now, _DAY, most),
    ).fetchall()
    found |= {row[0]: _image(row) for row in behind}
    return list(found.values()), (behind[-1][0] if len(behind) == most else end or 0)


def begin_deleting(connection: Connection, image: Image, now: int) -> bool:
    """Take an image out of sight, and with it all that was written about it; False when it was already."""
    connection.execute(
        "UPDATE images SET deleted_at = ?, facet = -1 WHERE key = ? AND deleted_at IS NULL", (now, image.key)
    )
    if connection.changes() == 0:
        return False
    connection.execute(
        "UPDATE datasets SET images = images - 1, bytes = bytes - ? WHERE number = ?",
        (image.size, image.key >> 32),
    )
    return True


def being_deleted(connection: Connection, after: int, most: int) -> list[Image]:
    """Images out of sight whose files may still be there, of datasets that stay; by key, behind `after`."""
    found = connection.execute(
        f"SELECT {_IMAGE} FROM images INDEXED BY images_being_deleted"  # noqa: S608
        " JOIN datasets ON datasets.number = images.dataset"
        " WHERE images.deleted_at IS NOT NULL AND images.key > ? AND datasets.erased_at IS NULL"
        " ORDER BY images.key LIMIT ?",
        (after, most),
    )
    return [_image(row) for row in found]


def finish_deleting(connection: Connection, images: Iterable[Image], now: int) -> list[Image]:
    """Their files are gone: the rows go, tombstones stay. Those that had a row until now."""
    gone = []
    for image in images:
        connection.execute("DELETE FROM images WHERE key = ?", (image.key,))
        if connection.changes():
            bury(connection, image.id, image.dataset, now)
            gone.append(image)
    return gone


def bury(connection: Connection, erased: str, dataset: DatasetId, now: int) -> None:
    """Remember that this id was erased."""
    connection.execute(
        "INSERT OR IGNORE INTO tombstones (id, dataset, erased_at) VALUES (?, ?, ?)", (erased, dataset, now)
    )


def living_ids(connection: Connection, dataset: int) -> set[str]:
    """The ids of all images of a dataset that have a row, those being deleted included."""
    return {row[0] for row in connection.execute("SELECT id FROM images WHERE dataset = ?", (dataset,))}


def to_scrub(connection: Connection, before: int, now: int, most: int) -> list[Image]:
    """Images that were last proven before `before`, or never, the longest ago first.

    Behind them those of a clock that was ahead, with a time after `now`: nobody knows when that was.
    """
    proven = "coalesce(images.scrubbed_at, images.created_at)"
    due: list[Image] = []
    for condition, bound in ((f"{proven} < ?1", before), (f"{proven} > ?1", now)):
        found = connection.execute(
            f"{_LIVING} AND {condition} AND NOT images.damaged ORDER BY {proven} LIMIT ?2",
            (bound, most - len(due)),
        )
        due += [_image(row) for row in found]
    return due


def scrubbed(connection: Connection, images: Iterable[Image], now: int) -> None:
    """Every byte of these was proven."""
    for image in images:
        connection.execute("UPDATE images SET scrubbed_at = ? WHERE key = ?", (now, image.key))


def note_damage(connection: Connection, image: Image, now: int) -> bool:
    """The file of this image is not what was sealed, or is not there: once for each image, with an entry.

    False for one that was deleted or erased meanwhile: that its file is gone is as it should be.
    """
    connection.execute(
        "UPDATE images SET damaged = 1 WHERE key = ? AND NOT damaged AND deleted_at IS NULL"
        " AND (SELECT erased_at IS NULL FROM datasets WHERE number = images.dataset)",
        (image.key,),
    )
    noted = connection.changes() > 0
    if noted:
        details: dict[str, object] = {"dataset": image.dataset}
        record(connection, now, _STORE, Event.IMAGE_DAMAGED, image.customer, image.id, details)
    return noted


def note_restored(connection: Connection, image: Image, now: int) -> None:
    """Every byte of an image that was damaged is what was sealed, with an entry."""
    connection.execute(
        "UPDATE images SET damaged = 0, scrubbed_at = ? WHERE key = ? AND damaged", (now, image.key)
    )
    if connection.changes():
        details: dict[str, object] = {"dataset": image.dataset}
        record(connection, now, _STORE, Event.IMAGE_RESTORED, image.customer, image.id, details)


def damaged_images(connection: Connection, after: int, most: int) -> list[Image]:
    """Images that are known to be damaged, by rising keys."""
    found = connection.execute(
        f"{_LIVING} AND images.damaged AND images.key > ? ORDER BY images.key LIMIT ?", (after, most)
    )
    return [_image(row) for row in found]


def damaged(connection: Connection) -> int:
    """How many images are known to be damaged."""
    return connection.execute("SELECT count(*) FROM images WHERE damaged AND deleted_at IS NULL").get or 0


def last_entry(connection: Connection) -> int:
    """The audit log's newest entry: what is durable rises with it, and an older ledger has a lower one."""
    return connection.execute("SELECT coalesce(max(seq), 0) FROM audit").get or 0


def owners(connection: Connection) -> dict[str, tuple[int, CustomerId]]:
    """The number and the customer of every dataset that has a row, by id, erased ones included."""
    found = connection.execute("SELECT id, number, customer FROM datasets")
    return {identity: (number, CustomerId(customer)) for identity, number, customer in found}


def check_living(connection: Connection, dataset: Dataset) -> None:
    """Raises NotFound when the dataset is erased."""
    if connection.execute("SELECT erased_at IS NULL FROM datasets WHERE id = ?", (dataset.id,)).get != 1:
        raise NotFound("no such dataset")


def _image(row: tuple[Any, ...]) -> Image:
    key, image, dataset, customer, created_at, kind, width, height, size, thumbnail, damage, facet = row
    return Image(
        key, image, dataset, customer, created_at, kind, width, height, size, thumbnail, bool(damage), facet
    )
