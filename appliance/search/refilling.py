"""Collections that are filled where nobody sees them, and are there all at once: a restored snapshot.

The records go into a row of their own, a few in a transaction each, so that others' writes get in between. It
is marked as removed meanwhile: where a crash or a refusal comes in between, it is erased like any removed
collection. One last transaction shows it, in the place of another one or as a new one.

In the place of another one it goes on with that one's key, under which its rows were sealed from the start.
The ids that it is filled under, and that the other one is erased by, are of no key: none is destroyed.
"""

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

from appliance import config
from appliance.accounts.customers import CustomerId
from appliance.errors import ApplianceError, may_be_kept
from appliance.ledger import Connection, Ledger
from appliance.search import copying, entries, names
from appliance.search.copying import Stored
from appliance.search.entries import Entry
from appliance.search.erasing import Erasing
from appliance.search.records import Collection, CollectionId
from appliance.search.rows import Quota
from appliance.search.seals import ContainerId, Seals
from appliance.search.sync.feeds import carry_over
from appliance.vault import Keyring
from appliance.volume import Space

T = TypeVar("T")

Note = Callable[[Connection, int], None]
"""What else belongs to the last transaction, with so many records: the row of the audit log."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a collection is filled with: so many records at most, labels ascending and below `next_label`.

    What `batches` raises undoes all.
    """

    records: int
    next_label: int
    batches: AsyncGenerator[Stored]


class Refilling:
    """Fills collections. What is refused or fails leaves all as it was; everything raises StorageFailed."""

    def __init__(
        self,
        ledger: Ledger,
        keyring: Keyring,
        settings: config.Search,
        erasing: Erasing,
        space: Space,
        *,
        naming: asyncio.Lock,
        replaced: Callable[[CollectionId], None],
        most: Callable[[CustomerId], tuple[int, int]],
    ) -> None:
        """Nobody renames a collection while `naming` is held; `replaced` is told who has another row now.
        `most` says how many collections and how many records in all a customer may have.
        """
        self._ledger = ledger
        self._keyring = keyring
        self._settings = settings
        self._erasing = erasing
        self._space = space
        self._naming = naming
        self._replaced = replaced
        self._most = most

    async def replace(self, old: Entry, content: Content, note: Note) -> asyncio.Future[None]:
        """Put this in the place of all records of a collection, which keeps its id, name, key and feed.

        What comes back is done when what it had is erased. Its graphs go, and are built anew. Raises NotFound
        when it is removed or emptied meanwhile, CapacityExceeded, VolumeFull, and what the content raises.
        """

        def check(connection: Connection) -> Entry:
            now = entries.same_collection(connection, old)
            self._check_room(connection, now.customer, now.count, content)
            return now

        await self._ledger.read(check)
        seals = Seals(self._keyring, old.customer, old.container)
        spare = str(uuid.uuid4())
        unseen = dataclasses.replace(old, id=CollectionId(spare), container=ContainerId(spare))
        filled = await self._fill(unseen, seals, content)

        def act(connection: Connection) -> Entry:
            now = check(connection)
            label = max(content.next_label, entries.next_label(connection, now.number))
            left = entries.step_aside(connection, now, str(uuid.uuid4()))
            shown = dataclasses.replace(now, number=filled.number, count=filled.count)
            entries.show_collection(connection, shown, label)
            carry_over(connection, now, seals, seals)
            note(connection, filled.count)
            return left

        async with self._naming:
            await self._erasing.remove_graphs(seals.container)
            left = await self._show(filled, act, lambda _: self._replaced(old.id))
        return self._erasing.start(left)

    async def add(self, new: Collection, content: Content, note: Note) -> None:
        """Have a new collection with this content, under a key of its own.

        Raises Conflict when its customer has one of this name, CapacityExceeded, VolumeFull, and what the
        content raises.
        """
        handle = names.handle_of(self._keyring, new.customer, new.name)

        def check(connection: Connection) -> None:
            entries.check_free(connection, new.customer, handle)
            entries.check_room(connection, new.customer, self._most(new.customer)[0])
            self._check_room(connection, new.customer, 0, content)

        await self._ledger.read(check)  # before a key is made for nothing
        container = ContainerId(new.id)
        await asyncio.to_thread(self._keyring.add, UUID(new.customer), UUID(container), "collection")
        seals = Seals(self._keyring, new.customer, container)
        unseen = Entry(
            0,
            new.id,
            container,
            new.customer,
            seals.seal_name(new.name),
            new.backbone,
            new.dim,
            new.created_at,
            count=0,
            handle=handle,
            recall=new.recall,
        )
        filled = await self._fill(unseen, seals, content)

        def act(connection: Connection) -> None:
            check(connection)
            entries.show_collection(connection, filled, content.next_label)
            note(connection, filled.count)

        await self._show(filled, act, lambda _: None)

    async def _fill(self, unseen: Entry, seals: Seals, content: Content) -> Entry:
        try:
            number = await self._ledger.write(partial(entries.add_unseen, new=unseen))
        except ApplianceError as error:
            if not may_be_kept(error):  # else the next start erases it
                owner, container = UUID(unseen.customer), UUID(unseen.container)
                await asyncio.to_thread(self._keyring.destroy, owner, container)
            raise
        filled = dataclasses.replace(unseen, number=number, spare=True)
        try:
            count = await self._pour(seals, number, content)
        except BaseException:
            _ = self._erasing.start(filled)
            raise
        return dataclasses.replace(filled, count=count)

    async def _pour(self, seals: Seals, number: int, content: Content) -> int:
        count = 0
        async with aclosing(content.batches) as batches:
            async for some in batches:
                await self._ledger.write(partial(self._add_some, seals=seals, number=number, some=some))
                count += len(some.labels)
        return count

    def _add_some(self, connection: Connection, seals: Seals, number: int, some: Stored) -> None:
        with self._space.room(some.size):
            copying.add(connection, seals, number, some)

    async def _show(self, filled: Entry, act: Callable[[Connection], T], then: Callable[[T], None]) -> T:
        """The last transaction. Where nobody can say whether it is on the disk, nothing is erased."""
        try:
            return await self._ledger.write(act, then=then)
        except ApplianceError as error:
            if not may_be_kept(error):
                _ = self._erasing.start(filled)
            raise

    def _check_room(self, connection: Connection, customer: CustomerId, old: int, content: Content) -> None:
        quota = Quota(self._settings.capacity, self._most(customer)[1])
        copying.check_room(connection, customer, old, content.records, quota)
