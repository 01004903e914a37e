"""TLS of the public listeners, from the files that `[api]` names."""

import ssl
from pathlib import Path

from appliance.config import Api
from appliance.errors import ConfigInvalid

_MINIMUM = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def server_context(config: Api) -> ssl.SSLContext | None:
    """A context of its own for each call, None where no certificate is named; blocks on the disk.

    It has its own tickets too: no session that another one made is resumed, so that whoever was believed by
    its authorities has to be believed anew. Raises ConfigInvalid for a file that cannot be used.
    """
    if config.tls_certificate is None or config.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _MINIMUM[config.tls_minimum]
    context.set_alpn_protocols(["http/1.1"])
    if config.tls_client_ca is not None:
        _believe_clients(context, config.tls_client_ca)
    try:
        # A password would be asked for on a terminal that a daemon does not have.
        context.load_cert_chain(config.tls_certificate, config.tls_key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise _unusable("api.tls_certificate", config.tls_certificate, error) from None
    return context


def _believe_clients(context: ssl.SSLContext, authorities: Path) -> None:
    """Has clients show certificates, where they have any, that these authorities have signed."""
    try:
        context.load_verify_locations(authorities)
    except (OSError, ValueError) as error:
        raise _unusable("api.tls_client_ca", authorities, error) from None
    context.verify_mode = ssl.CERT_OPTIONAL


def _unusable(key: str, file: Path, error: Exception) -> ConfigInvalid:
    reason = error.reason if isinstance(error, ssl.SSLError) else str(error)
    return ConfigInvalid([f"{key}: {file}: cannot be used: {reason}"])
