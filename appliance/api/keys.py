"""`/appliance/v1/keys`: what keys there are and their rotation, on the operator socket alone."""

import os
from pathlib import Path

import msgspec

from appliance.accounts.customers import CustomerId
from appliance.accounts.rotations import Overview, Rotations
from appliance.api.answers import Answer
from appliance.api.call import Call
from appliance.errors import Forbidden


class ContainersOwner(msgspec.Struct, forbid_unknown_fields=True):
    customer: str


class KeyManagement:
    """The handlers of the keys. No key material is ever answered; a new root comes in as 32 raw bytes."""

    def __init__(self, rotations: Rotations, root_key_file: Path | None) -> None:
        self._rotations = rotations
        self._root_key_file = root_key_file

    async def list_keys(self, _: Call) -> Answer:
        return Answer(_overview(await self._rotations.overview()))

    async def rotate_customer_key(self, call: Call) -> Answer:
        await self._rotations.rotate_customer(call.actor, CustomerId(call.parameters["id"]))
        return Answer(status=204)

    async def rotate_container_key(self, call: Call) -> Answer:
        owner = CustomerId(call.document(ContainersOwner).customer)
        await self._rotations.rotate_container(call.actor, owner, call.parameters["id"])
        return Answer(status=204)

    async def rotate_root(self, call: Call) -> Answer:
        """Answers what comes next, and from where the appliance takes its root: a file, or null."""
        _check_root(call)
        await self._rotations.rotate_root(call.actor, call.payload.body)
        file = None if self._root_key_file is None else str(self._root_key_file)
        return Answer({"rotation": self._rotations.rotation, "root_key_file": file})

    async def retire_root(self, call: Call) -> Answer:
        _check_root(call)
        return Answer({"retired": await self._rotations.retire_root(call.actor)})


def _check_root(call: Call) -> None:
    """Whoever chose a root, and has the keyring of a backup, opens everything, and needs no grant for it."""
    if call.principal.uid not in {0, os.geteuid()}:
        raise Forbidden("only root and the daemon's own user may change the root key")


def _overview(overview: Overview) -> dict[str, object]:
    return {
        "number": overview.number,
        "rotation": overview.rotation,
        "customers": [
            {
                "customer": str(held.customer),
                "generation": held.generation,
                "containers": [
                    {"id": str(container), "kind": kind, "generations": list(generations)}
                    for container, kind, generations in held.containers
                ],
            }
            for held in overview.customers
        ],
    }
