"""URLs as the client of the gate reads them, and which destination they lead to."""

from ipaddress import ip_address

from yarl import URL

from appliance.errors import InvalidInput
from appliance.residency import Destination

URL_CHARACTERS = 2048

_EXPECTED = "a URL such as https://HOST/PATH is expected"


def parsed(url: str) -> URL:
    """The address as the client reads it, without its fragment. Raises InvalidInput."""
    if len(url) > URL_CHARACTERS or not url.isprintable() or "\\" in url or " " in url:
        raise InvalidInput(f"a URL of at most {URL_CHARACTERS} characters, without spaces, is expected")
    try:
        address = URL(url)
        # Its parts are parsed when they are asked for, all that the client will ask for too.
        complete = address.host and address.raw_host and address.port and address.raw_path_qs and str(address)
    except Exception:  # noqa: BLE001 - IDNA and bracketed hosts raise what they like, IndexError among it
        raise InvalidInput(_EXPECTED) from None
    if address.scheme not in {"http", "https"} or not complete:
        raise InvalidInput(_EXPECTED)
    if address.user is not None or address.password is not None:
        raise InvalidInput("a URL without user name and password is expected")
    return address.with_fragment(None)


def redirected(url: URL, location: str) -> URL:
    """Where a host leads on that was asked for `url`, by the header `Location`. Raises InvalidInput."""
    try:
        address = str(url.join(URL(location)))
    except Exception:  # noqa: BLE001 - as above
        raise InvalidInput(_EXPECTED) from None
    return parsed(address)


def leads_to(destination: Destination, url: URL) -> bool:
    """Whether scheme, host and port are the destination's."""
    scheme = "https" if destination.tls else "http"
    return (url.scheme, _host(url.host or ""), url.port) == (
        scheme,
        _host(destination.host),
        destination.port,
    )


def _host(name: str) -> str:
    """One spelling of a host: an address in its canonical form, a name in small letters."""
    try:
        return str(ip_address(name))
    except ValueError:
        return name.lower()
