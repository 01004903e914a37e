"""The rows under /appliance/v1: what the cloud does not have, in plain REST."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
from appliance.api.agreements import Agreements
from appliance.api.aliases import Aliases
from appliance.api.answers import Answer
from appliance.api.audit import Audit
from appliance.api.backups import Backups
from appliance.api.call import Call
from appliance.api.collections import Collections
from appliance.api.datasets import Datasets
from appliance.api.evidence import Evidence
from appliance.api.feeds import Feeds
from appliance.api.files import Files
from appliance.api.grants import Grants
from appliance.api.interchange import Interchange
from appliance.api.keys import KeyManagement
from appliance.api.limits import Limits
from appliance.api.management import Management
from appliance.api.payload import Form
from appliance.api.privacy import Privacy
from appliance.api.routing import LOCAL, MANAGED, MANAGEMENT, PUBLIC, READ, Access, Route, Surface
from appliance.api.snapshots import Snapshots
from appliance.api.transfers import Transfers


def _route(  # noqa: PLR0917 - the columns of the table
    surfaces: frozenset[Surface],
    method: str,
    path: str,
    handler: Callable[[Any, Call], Awaitable[Answer]],
    access: Scope | Access,
    audit: Event | Literal["read"] = READ,
    form: Form = Form.NOTHING,
) -> Route:
    return Route(method, f"{MANAGEMENT}v1{path}", handler, access, audit, form, surfaces)


_public, _managed, _local = (partial(_route, surfaces) for surfaces in (PUBLIC, MANAGED, LOCAL))
_ADMIN, _OPERATOR = Scope.ADMIN, Access.OPERATOR


def _accounts() -> tuple[Route, ...]:
    customer, token, manage, fields = "/customers/{id}", "/tokens/{id}", Management, Form.FIELDS
    return (
        _managed("POST", "/customers", manage.add_customer, _OPERATOR, Event.CUSTOMER_ADD, Form.FIELDS),
        _managed("GET", "/customers", manage.list_customers, _ADMIN),
        _managed("GET", customer, manage.get_customer, _ADMIN),
        _managed("POST", f"{customer}/suspend", manage.suspend_customer, _OPERATOR, Event.CUSTOMER_SUSPEND),
        _managed("POST", f"{customer}/resume", manage.resume_customer, _OPERATOR, Event.CUSTOMER_RESUME),
        _managed("DELETE", customer, Privacy.erase_customer, _OPERATOR, Event.CUSTOMER_ERASE),
        _managed(
            "PATCH", f"{customer}/limits", Limits.limit_customer, _OPERATOR, Event.CUSTOMER_LIMIT, fields
        ),
        _managed("POST", "/tokens", manage.add_token, _ADMIN, Event.TOKEN_ADD, Form.FIELDS),
        _managed("GET", "/tokens", manage.list_tokens, _ADMIN),
        _managed("POST", f"{token}/rotate", manage.rotate_token, _ADMIN, Event.TOKEN_ROTATE, Form.FIELDS),
        _managed("PATCH", f"{token}/limits", Limits.limit_token, _OPERATOR, Event.TOKEN_LIMIT, fields),
        _managed("DELETE", token, manage.revoke_token, _ADMIN, Event.TOKEN_REVOKE),
        _managed("GET", "/usage", Limits.usage, Access.TOKEN),
        _managed("GET", "/webhook-secret", manage.webhook_secret, _ADMIN),
    )


def _oversight() -> tuple[Route, ...]:
    agreement, sign, document = "/agreements/{id}", Event.AGREEMENT_SIGN, Event.AGREEMENT_DOCUMENT
    return (
        _managed("POST", "/agreements", Agreements.sign_agreement, _OPERATOR, sign, Form.FIELDS),
        _managed("GET", "/agreements", Agreements.list_agreements, _ADMIN),
        _managed("POST", f"{agreement}/accept", Agreements.accept_agreement, _ADMIN, Event.AGREEMENT_ACCEPT),
        _local(
            "PUT", f"{agreement}/document", Agreements.attach_document, _OPERATOR, document, Form.DOCUMENT
        ),
        _managed("GET", f"{agreement}/document", Agreements.get_document, _ADMIN),
        _managed("DELETE", agreement, Agreements.revoke_agreement, _ADMIN, Event.AGREEMENT_REVOKE),
        _managed("GET", "/erasures", Privacy.list_erasures, _ADMIN),
        _managed("GET", "/erasures/{id}", Privacy.get_erasure, _ADMIN),
        _managed("GET", "/export", Privacy.export, _ADMIN, Event.CUSTOMER_EXPORT),
        _managed("GET", "/residency", Evidence.residency, _ADMIN),
    )


def _audit() -> tuple[Route, ...]:
    return (
        _managed("GET", "/audit", Audit.list_entries, _ADMIN),
        _managed("GET", "/audit/export", Audit.export, _ADMIN),
        _managed("GET", "/audit/checkpoint", Audit.checkpoint, _ADMIN),
        _managed("GET", "/audit/proof", Audit.proof, _ADMIN),
    )


def _grants() -> tuple[Route, ...]:
    """The customer's acts are not on the operator socket: whoever has its token has the public port too."""
    one, opened = "/grants/{id}", Event.GRANT_OPEN
    return (
        _local("POST", "/grants/request", Grants.request, _OPERATOR, Event.GRANT_REQUEST, Form.FIELDS),
        _public("POST", "/grants", Grants.open, _ADMIN, opened, Form.FIELDS),
        _managed("GET", "/grants", Grants.list, _ADMIN),
        _public("POST", f"{one}/approve", Grants.approve, _ADMIN, Event.GRANT_APPROVE),
        _public("POST", f"{one}/deny", Grants.deny, _ADMIN, Event.GRANT_DENY),
        _public("POST", f"{one}/renew", Grants.renew, _ADMIN, opened, Form.FIELDS),
        _managed("DELETE", one, Grants.revoke, _ADMIN, Event.GRANT_REVOKE),
        _local("GET", "/images/{id}", Grants.see, _OPERATOR, Event.IMAGE_OPEN),
    )


def _search() -> tuple[Route, ...]:
    one, read, write = "/collections/{id}", Scope.SEARCH_READ, Scope.SEARCH_WRITE
    return (
        _managed("POST", "/collections", Collections.add, _ADMIN, Event.COLLECTION_ADD, Form.FIELDS),
        _managed("GET", "/collections", Collections.list, _ADMIN),
        _managed("GET", one, Collections.get, _ADMIN),
        _managed("PATCH", one, Collections.change, _ADMIN, Event.COLLECTION_RENAME, Form.FIELDS),
        _managed("POST", f"{one}/empty", Collections.empty, _ADMIN, Event.COLLECTION_EMPTY),
        _managed("GET", f"{one}/stats", Collections.stats, _ADMIN),
        _managed("POST", f"{one}/import", Transfers.receive, write, Event.SEARCH_IMPORT, Form.VECTORS),
        _managed("GET", f"{one}/export", Transfers.give, read, Event.SEARCH_EXPORT),
        _managed("DELETE", one, Collections.remove, _ADMIN, Event.COLLECTION_REMOVE),
        *_snapshots(f"{one}/snapshots"),
        _managed("GET", "/aliases", Aliases.list, _ADMIN),
        _managed("PUT", "/aliases/{name}", Aliases.point, _ADMIN, Event.ALIAS_SET, Form.FIELDS),
        _managed("DELETE", "/aliases/{name}", Aliases.remove, _ADMIN, Event.ALIAS_REMOVE),
        *_feeds(f"{one}/source"),
        _public("POST", f"{one}/diff", Feeds.diff, read, READ, Form.LINES),
    )


def _snapshots(all_of_them: str) -> tuple[Route, ...]:
    """Collections as they were."""
    one, restore = f"{all_of_them}/{{snapshot}}", Event.SNAPSHOT_RESTORE
    return (
        _managed("POST", all_of_them, Snapshots.add, _ADMIN, Event.SNAPSHOT_ADD),
        _managed("GET", all_of_them, Snapshots.list, _ADMIN),
        _managed("DELETE", one, Snapshots.remove, _ADMIN, Event.SNAPSHOT_REMOVE),
        _managed("POST", f"{one}/restore", Snapshots.restore, _ADMIN, restore, Form.FIELDS),
    )


def _feeds(source: str) -> tuple[Route, ...]:
    """What a collection follows."""
    write = Scope.SEARCH_WRITE
    return (
        _public("PUT", source, Feeds.set, write, Event.FEED_SET, Form.FIELDS),
        _public("GET", source, Feeds.get, write),
        _public("DELETE", source, Feeds.remove, write, Event.FEED_REMOVE),
        _public("POST", f"{source}/run", Feeds.run, write, Event.FEED_RUN),
        _public("GET", f"{source}/runs", Feeds.runs, write),
        _public("POST", f"{source}/confirm", Feeds.confirm, write, Event.FEED_CONFIRM),
    )


def _datasets() -> tuple[Route, ...]:
    one, read, write = "/datasets/{id}", Scope.DATASETS_READ, Scope.DATASETS_WRITE
    change, take_in = Event.DATASET_CHANGE, Event.DATASET_IMPORT
    return (
        _public("POST", "/datasets", Datasets.add, write, Event.DATASET_ADD, Form.FIELDS),
        _managed("GET", "/datasets", Datasets.list, read),
        _public("GET", one, Datasets.get, read),
        _public("PATCH", one, Datasets.change, write, change, Form.FIELDS),
        _public("DELETE", one, Datasets.erase, write, Event.DATASET_ERASE),
        _managed("POST", f"{one}/import", Interchange.receive, write, take_in, Form.ARCHIVE),
        _managed("GET", f"{one}/export", Interchange.give, read, Event.DATASET_EXPORT),
        _managed("GET", f"{one}/held", Interchange.held, write),
        _public("GET", "/images/{id}/key", Files.key, read),
    )


def _bundles() -> tuple[Route, ...]:
    one, install, activate = "/bundles/{name}/{version}", Event.BUNDLE_INSTALL, Event.BUNDLE_ACTIVATE
    return (
        _managed("POST", "/bundles", Management.install_bundle, _OPERATOR, install, Form.FILES),
        _managed("GET", "/bundles", Management.list_bundles, _OPERATOR),
        _managed("GET", "/bundles/verification", Management.verify_bundles, _OPERATOR),
        _managed("POST", f"{one}/activate", Management.activate_bundle, _OPERATOR, activate),
        _managed("DELETE", one, Management.remove_bundle, _OPERATOR, Event.BUNDLE_REMOVE),
    )


def _keys() -> tuple[Route, ...]:
    keys, rotate = KeyManagement, Event.KEY_ROTATE
    customer, container = "/keys/customers/{id}/rotate", "/keys/containers/{id}/rotate"
    return (
        _local("GET", "/keys", keys.list_keys, _OPERATOR),
        _local("POST", customer, keys.rotate_customer_key, _OPERATOR, rotate),
        _local("POST", container, keys.rotate_container_key, _OPERATOR, rotate, Form.FIELDS),
        _local("POST", "/keys/root/rotate", keys.rotate_root, _OPERATOR, rotate, Form.KEY),
        _local("POST", "/keys/root/retire", keys.retire_root, _OPERATOR, Event.KEY_RETIRE),
    )


MANAGEMENT_ROUTES: tuple[Route, ...] = (
    *_accounts(),
    *_oversight(),
    *_audit(),
    *_grants(),
    *_search(),
    *_datasets(),
    *_bundles(),
    *_keys(),
    _managed("GET", "/status", Management.status, _OPERATOR),
    _managed("GET", "/report", Privacy.report, _OPERATOR),
    _local("POST", "/backup", Backups.make, _OPERATOR, Event.BACKUP_MAKE),
)
