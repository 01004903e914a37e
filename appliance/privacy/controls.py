"""The control matrix: articles of the GDPR and controls of ISO/IEC 27001:2022 (Annex A), how each is
enforced, the evidence of the running appliance, and the test that fails when it is not so.

It maps controls to what the appliance does by itself; what an organisation does around it is not in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from appliance.accounts.audit import Event
from appliance.privacy.records import Facts

_DAY = 86_400
_ASKED = "administrators_see_images_only_when_asked"


@dataclass(frozen=True, slots=True)
class Control:
    """One row; `tests` are FILE::NAME within the project."""

    references: tuple[str, ...]
    control: str
    enforced: str
    evidence: Callable[[Facts], str]
    tests: tuple[str, ...]


def moment(milliseconds: int | None) -> str:
    """A time for people, in UTC."""
    if milliseconds is None:
        return "never"
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _named(promise: str, test: str) -> str:
    """A test of a promise, whose name takes more than a line."""
    return f"tests/promises/test_{promise}.py::test_{test}"


def _agreed(facts: Facts) -> str:
    active = sum(("training-data", "active") in one.agreements for one in facts.customers)
    images = sum(one.images for one in facts.customers)
    return (
        f"{active} of {len(facts.customers)} customers have an active agreement; {images} images are stored"
    )


def _retention(facts: Facts) -> str:
    datasets = sum(one.datasets for one in facts.customers)
    retained = sum(one.retained for one in facts.customers)
    days = facts.config.requests.keep_seconds / _DAY
    return f"{retained} of {datasets} datasets end by themselves; answers to requests go after {days:g} days"


def _erasures(facts: Facts) -> str:
    found = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(facts.erasures.items()))
    last = moment(facts.latest[Event.CUSTOMER_ERASE])
    return f"certificates: {found or 'none yet'}; last customer erased: {last}"


def _access(facts: Facts) -> str:
    given = (facts.latest[Event.GRANT_OPEN], facts.latest[Event.GRANT_APPROVE])
    last = moment(max((at for at in given if at is not None), default=None))
    return f"last grant: {last}; last image that an operator opened: {moment(facts.latest[Event.IMAGE_OPEN])}"


def _keys(facts: Facts) -> str:
    number, customers, containers = facts.keys
    rotated = moment(facts.latest[Event.KEY_ROTATE])
    return f"{containers} keys of containers, {customers} owners; change {number}; last rotation: {rotated}"


def _tokens(facts: Facts) -> str:
    issued = facts.issued
    return f"{issued.tokens} tokens are valid, {issued.admin} administer, {issued.endless} have no end"


def _outward(facts: Facts) -> str:
    declared = 0 if facts.residency is None else len(facts.residency.destinations)
    exchanges = sorted(facts.exchanges.items())
    counts = ", ".join(f"{name} {outcome}: {count}" for (name, outcome), count in exchanges)
    return f"destinations declared: {declared}; exchanges since the start: {counts or 'none'}"


def _where(facts: Facts) -> str:
    if facts.residency is None:
        return "no residency file is named"
    countries = sorted({one.country for one in facts.residency.destinations})
    area = "EU and EEA" if facts.residency.eea else "EU"
    return (
        f"stands in {facts.residency.site}, {facts.residency.country}; countries of destinations:"
        f" {', '.join(countries) or 'none'}; allowed: {area}"
    )


def _volume(facts: Facts) -> str:
    volume = facts.status.get("volume")
    if volume is None:
        return "the volume has not answered"
    free = volume["free_bytes"] / 2**30
    return f"{volume['mount']} ({volume['filesystem']}): {volume['encryption']}; {free:.1f} GiB free"


def _stored(facts: Facts) -> str:
    count = facts.counters["appliance_store_images_stored_total"]
    return f"all that was stored since the start: {count:.0f} training images, which were sent to be stored"


def _recorded(facts: Facts) -> str:
    """What the daemon knows is told first: a number of entries alone proves none of them."""
    keys = ("ledger.altered", "audit.log")
    found = [one["message"] for one in facts.status.get("findings", ()) if one["key"] in keys]
    counted = f"{facts.audit[0]} entries, the last one {moment(facts.audit[1])}"
    return "; ".join(
        [*found, f"{counted}; whether each is as it was written, `appliance audit verify` tells"]
    )


def _findings(facts: Facts) -> str:
    found = facts.status.get("findings", ())
    named = "; ".join(str(one["key"]) for one in found)
    return f"profile {facts.config.profile}, state {facts.status.get('state')}; findings: {named or 'none'}"


def _scrubbed(facts: Facts) -> str:
    counters = facts.counters
    proven = sum(counters[f"appliance_{part}_scrubbed_bytes_total"] for part in ("store", "search"))
    kinds = ("store_images", "search_frames", "search_records")
    damaged = sum(counters[f"appliance_{kind}_damaged"] for kind in kinds)
    days = facts.config.datasets.scrub_days
    return f"{proven / 2**20:.0f} MiB proven since the start, all within {days:g} days; {damaged:.0f} damaged"


def _transport(facts: Facts) -> str:
    api = facts.config.api
    tls = f"TLS {api.tls_minimum} or later" if api.tls_certificate else "without TLS"
    return f"listens on {', '.join(api.listen)}, {tls}"


def _bundles(facts: Facts) -> str:
    keys, unsigned = len(facts.config.bundles.trusted_keys), facts.config.bundles.allow_unsigned
    rule = "unsigned bundles may be installed" if unsigned else f"{keys} makers are trusted"
    return f"{len(facts.status.get('bundles', ()))} bundles are installed; {rule}"


CONTROLS: tuple[Control, ...] = (
    Control(
        ("GDPR 5(1)(c)", "GDPR 25", "A.8.11"),
        "Images sent for recognition or search are never stored",
        "They are in memory alone: the code that handles pixels cannot reach a file, held by an import rule",
        _stored,
        ("tests/promises/test_images_are_never_stored.py::test_nothing_of_an_image_is_found_in_any_file",),
    ),
    Control(
        ("GDPR 6", "GDPR 28(3)(a)", "A.5.34"),
        "Images are stored under an agreement alone",
        "The transaction that stores an image demands an active agreement of its customer",
        _agreed,
        (
            _named("images_rest_by_agreement_alone", "images_rest_by_agreement_and_at_a_calls_own_word"),
            "tests/unit/accounts/test_agreements.py::test_one_that_is_to_be_accepted_allows_nothing_before",
        ),
    ),
    Control(
        ("GDPR 5(1)(e)", "A.8.10"),
        "What has an end is deleted at its end",
        "Datasets keep images for as many days as they say; answers to requests are forgotten",
        _retention,
        (
            "tests/unit/datasets/test_time_of_retention.py::test_images_go_when_their_time_in_the_dataset_is_over",
        ),
    ),
    Control(
        ("GDPR 15", "GDPR 20"),
        "A customer gets a copy of all that it has, in open formats",
        "GET /appliance/v1/export: COCO, folders, NumPy arrays, JSON; what is not in it is named; audited",
        lambda facts: f"last copy: {moment(facts.latest[Event.CUSTOMER_EXPORT])}",
        (
            "tests/api/test_privacy.py::test_a_copy_has_everything",
            "tests/api/test_privacy.py::test_no_table_with_something_of_customers_is_forgotten",
        ),
    ),
    Control(
        ("GDPR 17", "GDPR 28(3)(g)", "A.8.10"),
        "What is erased is gone, and proven to be",
        "Keys are destroyed first, rows and files follow, the log is cut; a signed certificate",
        _erasures,
        (
            "tests/promises/test_erased_is_gone.py::test_no_byte_of_an_erased_customer_is_on_the_volume",
            "tests/faults/test_erasures_survive_a_kill.py::test_a_kill_at_any_step_leaves_all_or_nothing",
            "tests/unit/accounts/test_certificates.py::test_no_change_of_a_byte_is_missed",
            "tests/unit/search/test_erased_from_snapshots.py::test_what_is_erased_comes_back_from_no_snapshot",
        ),
    ),
    Control(
        ("GDPR 17", "A.8.13"),
        "No restored backup brings back what was erased",
        "Tombstones are demanded by a restore and ended again; destroyed keys are in no newer keyring",
        lambda facts: f"last restore: {moment(facts.latest[Event.BACKUP_RESTORE])}",
        ("tests/promises/test_erased_is_gone.py::test_a_backup_of_before_does_not_bring_it_back",),
    ),
    Control(
        ("GDPR 25", "GDPR 32(1)(b)", "A.5.15", "A.8.3"),
        "Customers never mix",
        "Each has keys of its own; every route is attacked with what is another customer's",
        lambda facts: f"{len(facts.customers)} customers; {facts.keys[1]} owners of keys",
        ("tests/promises/test_customers_never_mix.py::test_another_customers_token_finds_nothing",),
    ),
    Control(
        ("GDPR 28(3)(a)", "GDPR 32(4)", "A.8.2", "A.8.18"),
        "Operators see stored images only when the customer says so",
        "No permit without a live grant of the customer; each image opened is in its audit log first",
        _access,
        (
            _named(_ASKED, "no_route_of_the_operator_socket_shows_an_image"),
            "tests/unit/accounts/test_grants.py::test_nothing_is_seen_without_a_grant",
        ),
    ),
    Control(
        ("GDPR 32(1)(a)", "A.8.24"),
        "All that customers store rests encrypted under keys that are rotated",
        "AES-256-GCM under the key of each dataset and collection, wrapped by its customer's and the root",
        _keys,
        (
            "tests/promises/test_nothing_rests_in_plain.py::test_nothing_of_a_customer_rests_in_plain",
            "tests/unit/vault/test_keyring.py::test_a_rotated_customer_rewraps_and_changes_no_container",
        ),
    ),
    Control(
        ("GDPR 32(1)(a)", "A.7.10", "A.8.24"),
        "The volume is encrypted below the appliance",
        "In production it does not start on a volume that is not LUKS, and looks again while it runs",
        _volume,
        (
            "tests/system/test_refused_starts.py::test_production_on_a_volume_that_is_not_encrypted",
            "tests/system/test_residency_while_running.py::test_what_is_found_while_it_runs",
        ),
    ),
    Control(
        ("GDPR 32(1)(b)", "A.8.20", "A.8.24"),
        "What customers send is encrypted on its way",
        "TLS 1.3, or 1.2 where that is chosen; production refuses a public listener without it",
        _transport,
        ("tests/api/test_server.py::test_tls_is_1_3_and_nothing_older",),
    ),
    Control(
        ("A.5.16", "A.5.17", "A.5.18", "A.8.5"),
        "Tokens are scoped, end, are rotated and revoked, and cannot be read from the disk",
        "256 random bits, of which an HMAC is kept; compared in constant time",
        _tokens,
        (
            "tests/unit/accounts/test_tokens.py::test_the_secret_is_nowhere",
            "tests/promises/test_every_route_asks_who_is_there.py::test_every_route_asks_every_kind_of_token",
        ),
    ),
    Control(
        ("GDPR 28(2)", "GDPR 32", "A.8.20", "A.8.22", "A.8.23"),
        "No connection leaves but to declared destinations",
        "One gate makes every socket, by the address that it leads to; the firewall holds the same rule",
        _outward,
        (
            "tests/promises/test_nothing_goes_out_undeclared.py::test_no_form_of_an_address_gets_a_socket",
            "tests/promises/test_nothing_connects_outward.py::test_no_module_holds_an_outbound_client",
        ),
    ),
    Control(
        ("GDPR 44", "GDPR 46", "A.5.23"),
        "Nothing is transferred out of the European Union",
        "A residency file with another country is refused at the start",
        _where,
        ("tests/unit/residency/test_residency.py::test_a_destination_abroad_is_refused",),
    ),
    Control(
        ("GDPR 5(2)", "A.8.15", "A.5.28"),
        "Every act is recorded with its actor, and the record does not change",
        "A row in the transaction of the act, a leaf of a signed tree of which customers may keep heads",
        _recorded,
        (
            "tests/unit/accounts/test_audit.py::test_rows_neither_change_nor_go",
            "tests/properties/test_audit_is_tamper_evident.py::test_any_bit_of_a_row",
        ),
    ),
    Control(
        ("GDPR 32(1)(b)", "A.8.12"),
        "Memory with images reaches no disk",
        "No core dumps, no swap of the unit, no temporary files",
        _findings,
        (
            _named("crashes_leave_no_dump", "neither_the_daemon_nor_its_children_dump_what_they_hold"),
            "tests/deploy/test_unit.py::test_memory_with_pixels_reaches_no_disk",
        ),
    ),
    Control(
        ("GDPR 32(1)(c)", "A.8.13", "A.5.30"),
        "Backups are whole, sealed, and come back",
        "Every byte is proven by a restore; keyrings are kept apart",
        lambda facts: f"last backup: {moment(facts.latest[Event.BACKUP_MAKE])}",
        ("tests/unit/backup/test_round_trip.py::test_images_come_back_as_they_were",),
    ),
    Control(
        ("GDPR 5(1)(f)", "GDPR 32(1)(d)"),
        "What is stored is proven to be what was stored, again and again",
        "Every image and vector is unsealed within so many days; what is damaged is named and not given out",
        _scrubbed,
        (
            "tests/unit/search/test_scrub.py::test_every_frame_of_every_collection_is_proven_within_the_days",
            "tests/unit/datasets/test_upkeep.py::test_a_damaged_image_is_not_given_out_and_the_others_are",
        ),
    ),
    Control(
        ("A.8.7", "A.8.26", "A.8.28"),
        "Hostile images reach nothing",
        "Decoded by processes that are locked in before the first one: no file, no connection, no key",
        lambda facts: f"{facts.counters['appliance_decoders_lost_total']:.0f} decoders lost since the start",
        ("tests/faults/test_decoder_sandbox.py::test_every_decoder_is_locked_in_before_its_first_image",),
    ),
    Control(
        ("A.8.6", "A.8.16", "GDPR 33"),
        "What goes wrong is told at once",
        "Findings of volume, devices, keys and clock in status, readiness and metrics",
        _findings,
        ("tests/unit/health/test_health.py::test_little_space_degrades_and_still_serves",),
    ),
    Control(
        ("A.8.9", "A.8.32"),
        "A configuration that breaks a rule is refused whole",
        "Start and reload name every finding; the old configuration stays",
        _findings,
        ("tests/system/test_refused_starts.py::test_every_finding_at_once",),
    ),
    Control(
        ("A.8.17",),
        "A clock that is set revives nothing and deletes nothing early",
        "The latest time is kept; a leap ahead is doubted for a day",
        lambda facts: f"doubted by {facts.counters['appliance_store_clock_doubted_seconds']:.0f} s now",
        (
            "tests/unit/datasets/test_links.py::test_a_clock_that_is_set_back_revives_nothing",
            "tests/unit/datasets/test_time_of_retention.py::test_a_clock_that_leaps_ahead_deletes_nothing_for_a_day",
        ),
    ),
    Control(
        ("A.5.21", "A.8.19"),
        "Models are installed from trusted makers alone, and seen to work first",
        "Signed bundles; each sees its own image again before it is listed",
        _bundles,
        ("tests/api/test_bundle_makers.py::test_a_bundle_sees_its_own_image_before_it_is_listed",),
    ),
    Control(
        ("GDPR 30", "A.5.33"),
        "Records of processing are those of the running system",
        "This report is made from configuration, status, ledger and counters",
        lambda facts: f"{len(facts.customers)} customers, made {moment(facts.made_at)}",
        ("tests/unit/privacy/test_report.py::test_every_number_is_that_of_the_running_system",),
    ),
)
