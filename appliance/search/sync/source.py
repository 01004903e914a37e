"""What a collection follows: where its feed is, how that is read, and when."""

import re
from datetime import UTC, datetime, timedelta

import msgspec

from appliance.errors import InvalidInput
from appliance.outbound import Outbound
from appliance.search.sync.mapping import Mapping, check_mapping

LEAST_SECONDS, MOST_SECONDS = 60, 366 * 86_400
MOST_HEADERS = 16
MOST_HEADER_CHARACTERS = 1024

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_OURS = re.compile(
    r"host|connection|transfer-encoding|upgrade|te|trailer|expect|range|if-.*|content-.*|proxy-.*|accept-encoding",
    re.IGNORECASE,
)
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A feed and its schedule: every so many seconds, daily at HH:MM in UTC, or only when somebody asks.

    `url` and the values of `headers` may be secrets.
    """

    url: str
    headers: dict[str, str] = {}
    mapping: Mapping = Mapping()
    every_seconds: int | None = None
    daily_at: str | None = None

    def __repr__(self) -> str:
        return "Source(...)"

    def next_due(self, now: int) -> int | None:
        """When it is due after `now`, both unix milliseconds; None for when somebody asks."""
        if self.every_seconds is not None:
            return now + self.every_seconds * 1000
        if self.daily_at is None:
            return None
        hour, minute = map(int, self.daily_at.split(":"))
        day = datetime.fromtimestamp(now / 1000, UTC)
        due = day.replace(hour=hour, minute=minute, second=0, microsecond=0)
        return int((due if due > day else due + timedelta(days=1)).timestamp() * 1000)


def check_source(source: Source, outbound: Outbound) -> None:
    """Raises InvalidInput naming the field; so it does for a host that is not declared for feeds."""
    outbound.check(source.url, "feeds")
    check_mapping(source.mapping)
    if source.every_seconds is not None and source.daily_at is not None:
        raise InvalidInput("every_seconds: not together with daily_at")
    if source.every_seconds is not None and not LEAST_SECONDS <= source.every_seconds <= MOST_SECONDS:
        raise InvalidInput(f"every_seconds: {LEAST_SECONDS} to {MOST_SECONDS} are expected")
    if source.daily_at is not None and not _TIME.fullmatch(source.daily_at):
        raise InvalidInput("daily_at: a time in UTC such as 03:30 is expected")
    if len(source.headers) > MOST_HEADERS:
        raise InvalidInput(f"headers: at most {MOST_HEADERS}")
    for name, value in source.headers.items():
        if not _NAME.fullmatch(name) or _OURS.fullmatch(name):
            raise InvalidInput("headers: one has a name that cannot be set")
        if len(value) > MOST_HEADER_CHARACTERS or not value.isprintable() or not value.isascii():
            raise InvalidInput(f"headers: one has more than {MOST_HEADER_CHARACTERS} characters, or others")
