"""Zip files of a person, whatever was done to them: what cannot be read is told in one way."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.datasets.interchange.archive import shown
from appliance.errors import ApplianceError, InvalidInput

_ENCRYPTED = 0x1  # of a member's flags (APPNOTE.TXT, 4.4.4)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip file, open meanwhile. Raises InvalidInput for one that is none, or is damaged."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # noqa: BLE001 - as below
        raise InvalidInput(_said(error) or "is no zip file, or a damaged one") from None
    with archive:
        yield archive


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever goes wrong within while the member `name` is read becomes InvalidInput, which names it."""
    try:
        yield
    except ApplianceError:
        raise
    except Exception as error:  # noqa: BLE001 - zipfile and what unpacks for it have many ways to say it
        reason = _said(error)
        why = "this member of the zip file is damaged" if reason is None else f"cannot be read: {reason}"
        raise InvalidInput(f"{shown(name)}: {why}") from None


def is_encrypted(member: zipfile.ZipInfo) -> bool:
    """Whether it takes a password to read it."""
    return bool(member.flag_bits & _ENCRYPTED)


def _said(error: Exception) -> str | None:
    """What the disk, or a zip file that is packed in a way of its own, says for itself."""
    if isinstance(error, OSError):  # bz2 has no error of its own, and uses one without a number
        return error.strerror
    return str(error) if isinstance(error, NotImplementedError) else None
