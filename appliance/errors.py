"""Errors that cross part borders: one class per thing a caller or an operator can act on.

A message says what is wrong, where, and what to do; it never contains image bytes, keys or tokens.
HTTP status codes live in `appliance.api`, exit codes in `appliance.cli`.
"""


class ApplianceError(Exception):
    """Anything the appliance refuses or fails at, with a message for the person who reads it."""


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


class VolumeOffline(StorageFailed):
    """Stored images are out of reach, or their volume cannot be trusted: nothing was acknowledged."""


class ResidencyBroken(StorageFailed):
    """The machine is not what was declared: no image is stored until it is put right."""


class VolumeFull(ApplianceError):
    """The volume has no more space free than is kept for deleting: nothing more is taken in."""


class SealBroken(ApplianceError):
    """What rests on the volume is not what was sealed, or another key's: nothing of it is given out."""


class InvalidInput(ApplianceError):
    """The request is understood and refused: the message names the field and the limit."""


class InvalidImage(InvalidInput):
    """The bytes of one record are not an image that the appliance decodes."""


class HostFailed(InvalidInput):
    """A declared host gave nothing in time, or says that it cannot now: in a while it may."""


class ImageFailed(InvalidImage):
    """The image crashed its decoder or took it too long: it is not tried again."""


class ModelFailed(ApplianceError):
    """A model failed for this image, or gave no answer; it is the model's fault, and others may do better."""


class TooLarge(InvalidInput):
    """A body, an image or a field exceeds a limit named in the message."""


class NotFound(ApplianceError):
    """The id does not exist, or belongs to another customer: the answer is the same."""


class Unauthenticated(ApplianceError):
    """No token, or one that is malformed, unknown, expired or revoked: the answer is the same."""


class Forbidden(ApplianceError):
    """The token is valid and may not do this: the message names the scope or agreement that is missing."""


class Conflict(ApplianceError):
    """What is to be created exists already."""


class AlreadyStored(Conflict):
    """The dataset has an image of the same bytes; `image` is its id."""

    def __init__(self, image: str) -> None:
        super().__init__(f"an image of the same bytes already exists, image ID: {image}")
        self.image = image


class CapacityExceeded(ApplianceError):
    """A hard limit of a collection or a customer is reached."""


class NotInstalled(ApplianceError):
    """No bundle serves this route or this service."""


class Overloaded(ApplianceError):
    """A queue is full; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QuotaReached(ApplianceError):
    """A customer has as much as it may: what it removes makes room, or its operator allows more."""

    retry_after = 60

    def __init__(self, most: int, what: str) -> None:
        super().__init__(
            f"the customer may have {most} {what}: remove some, or ask the operator of the appliance for more"
            " (appliance customer limit)",
        )


class WorkerLost(ApplianceError):
    """A child process died or hung while it held this request; it has been restarted."""


class WorkerRefused(ApplianceError):
    """A child process could not start: the message names the missing library, device or file."""
