"""Errors that cross part borders: one class per thing a caller or an operator can act on.

A message says what is wrong, where, and what to do; it never contains image bytes, keys, tokens or labels.
HTTP status codes live in `appliance.api`, exit codes in `appliance.cli`.
"""


class ApplianceError(Exception):
    """Anything the appliance refuses or fails at, with a message for the person who reads it.

    The message is for who runs the machine: it may name files and processes, and goes to the log, the command
    line and the operators' socket. Customers read `told`: one sentence for all errors of a class, save where
    `told=` says more. So what gets into a message without a thought goes no further than the log.
    """

    told = "the appliance cannot do this now: its log says why"

    def __init__(self, message: str = "", *, told: str | None = None) -> None:
        """Without a message it is what customers are told."""
        super().__init__(message or told or self.told)
        if told is not None:
            self.told = told


class Declined(ApplianceError):
    """What was asked for cannot be had as it was asked: the message is for whoever asked, customers too.

    It speaks of the request and of what its sender has, and names nothing of the machine; `told=` is for one
    that does.
    """

    def __init__(self, message: str, *, told: str | None = None) -> None:
        super().__init__(message, told=message if told is None else told)


class ConfigInvalid(ApplianceError):
    """The configuration or the residency file has findings; `findings` holds all of them."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = findings


class DaemonNeeded(ApplianceError):
    """No daemon runs, and without one this cannot be done: the message says how to start it."""


class StateInUse(ApplianceError):
    """Another daemon holds the state folder."""


class SelfTestFailed(ApplianceError):
    """A cipher or a library does not behave as its standard says; nothing may be served."""


class KeyringInvalid(ApplianceError):
    """The keyring is missing, damaged or made for another root key: nothing that it seals can be opened."""


class BackupInvalid(ApplianceError):
    """A backup is not whole, or not what was made; `problems` names every file in question."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class AuditBroken(ApplianceError):
    """The audit log is not what was signed; `findings` names everything in question."""

    def __init__(self, findings: list[str]) -> None:
        super().__init__("\n".join(findings))
        self.findings = findings


class StorageFailed(ApplianceError):
    """The ledger or the volume refused a write or a sync; nothing of the request was kept."""

    told = "the storage of the appliance failed: its log says why"


class LedgerAltered(StorageFailed):
    """Something else has changed how the ledger is built: nothing is written to it until that is undone."""

    told = "nothing is stored: something else has changed the ledger of the appliance, whose log says how"


def may_be_kept(error: ApplianceError) -> bool:
    """Whether an act that the ledger raised this for may be on the disk all the same: the next start tells.

    Until then a file or a key that its row speaks of has to stay.
    """
    return isinstance(error, StorageFailed) and not isinstance(error, LedgerAltered)


class VolumeOffline(StorageFailed):
    """Stored images are out of reach, or their volume cannot be trusted: nothing was acknowledged."""

    told = "stored images are out of reach: the log of the appliance says why"


class ResidencyBroken(StorageFailed):
    """The machine is not what was declared: no image is stored until it is put right."""

    told = "no image is stored: the machine is not what was declared, and its log says why"


class VolumeFull(ApplianceError):
    """The volume has no more space free than is kept for deleting: nothing more is taken in."""

    told = "the volume of the appliance has no room for more"


class SealBroken(ApplianceError):
    """What rests on the volume is not what was sealed, or another key's: nothing of it is given out."""

    told = "what is stored is damaged, or its key was destroyed"


class InvalidInput(Declined):
    """The request is understood and refused: the message names the field and the limit."""


class BundleDamaged(InvalidInput):
    """A file of an installed bundle is not the one that was installed, or cannot be read."""


class InvalidImage(InvalidInput):
    """The bytes of one record are not an image that the appliance decodes."""


class HostFailed(InvalidInput):
    """A declared host gave nothing in time, or says that it cannot now: in a while it may."""


class ImageFailed(InvalidImage):
    """The image crashed its decoder or took it too long: it is not tried again."""


class ModelFailed(Declined):
    """A model failed for this image, or gave no answer, and would again; others may do better.

    What it said of that is for who runs the machine.
    """

    told = "the model failed for this image"

    def __init__(self, message: str) -> None:
        super().__init__(message, told=type(self).told)


class TooLarge(InvalidInput):
    """A body, an image or a field exceeds a limit named in the message."""


class NotFound(Declined):
    """The id does not exist, or belongs to another customer: the answer is the same."""


class Unauthenticated(Declined):
    """No token, or one that is malformed, unknown, expired or revoked: the answer is the same."""


class Forbidden(Declined):
    """The token is valid and may not do this: the message names the scope or agreement that is missing."""


class Conflict(Declined):
    """What is to be created exists already."""


class AlreadyStored(Conflict):
    """The dataset has an image of the same bytes; `image` is its id."""

    def __init__(self, image: str) -> None:
        super().__init__(f"an image of the same bytes already exists, image ID: {image}")
        self.image = image


class CapacityExceeded(Declined):
    """A hard limit of a collection or a customer is reached."""


class NotInstalled(Declined):
    """No bundle serves this route or this service."""


class Overloaded(Declined):
    """A queue is full; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QuotaReached(Declined):
    """A customer has as much as it may: what it removes makes room, or its operator allows more."""

    retry_after = 60

    def __init__(self, most: int, what: str) -> None:
        super().__init__(
            f"the customer may have {most} {what}: remove some, or ask the operator of the appliance for more"
            " (appliance customer limit)",
        )


class WorkerLost(ApplianceError):
    """A child process died or hung while it held this request; it has been restarted."""

    told = "a process of the appliance ended over this, or had no time for it: try again"


class WorkerRefused(ApplianceError):
    """A child process could not start: the message names the missing library, device or file."""
