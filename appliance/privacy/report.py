"""The report as one HTML file that prints: records of processing (Art. 30), and the control matrix.

No script, nothing from elsewhere; every word that the appliance does not say itself is escaped.
"""

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from appliance.privacy.controls import CONTROLS, moment
from appliance.privacy.records import Facts, Processing
from appliance.residency import BackupTarget, LogSink, Residency, Volume

_STYLE = """
@page { size: A4 landscape; margin: 14mm }
body { font: 10pt/1.4 system-ui, sans-serif; color: #111; margin: 2em auto; max-width: 75em; padding: 0 1em }
h1 { font-size: 18pt; margin-bottom: 0 }
h2 { font-size: 13pt; margin-top: 2em; break-after: avoid }
table { border-collapse: collapse; width: 100% }
thead { display: table-header-group }
tr { break-inside: avoid }
th, td { border: 1px solid #999; padding: .3em .5em; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere }
th { background: #eee }
code { font-size: 80% }
dt { font-weight: bold; float: left; clear: left; width: 16em }
dd { margin-left: 17em; margin-bottom: .3em; break-inside: avoid }
@media print { body { font-size: 8.5pt; margin: 0; max-width: none; padding: 0 } }
"""
_GIB = 2**30
_UNDECLARED = "not declared"
_JOINED = "\u2060"  # word joiner: nothing is broken there


def html(facts: Facts) -> str:
    """The whole document."""
    title = f"Records of processing and controls: {_site(facts)}"
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n",
            f"<h1>{escape(title)}</h1>\n<p>Made {moment(facts.made_at)} by the running appliance",
            f" {escape(str(facts.status.get('version')))} (profile {escape(facts.config.profile)}),",
            " from its configuration, status, ledger and counters.",
            "" if facts.config.profile == "production" else " This is a demonstration.",
            "</p>\n",
            "<h2>Processing on behalf of customers (GDPR, Art. 30(2))</h2>\n",
            _described(_processing(facts)),
            "<h2>Customers</h2>\n",
            _table(_CUSTOMER, map(_customer, facts.customers)),
            "<h2>Recipients: declared destinations</h2>\n",
            _table(_DESTINATION, _destinations(facts)),
            "<h2>Findings of this moment</h2>\n",
            _table(("Severity", "Key", "What"), _findings(facts)),
            "<h2>Controls (GDPR; ISO/IEC 27001:2022, Annex A)</h2>\n",
            _table(_CONTROL, _controls(facts)),
            "</body></html>\n",
        )
    )


_CUSTOMER = (
    *("Controller", "Since", "Agreements", "Datasets", "Images", "Stored GiB", "Retention"),
    *("Collections", "Records", "Requests kept", "Feeds"),
)
_DESTINATION = ("Name", "Host", "Port", "Networks", "Country", "Purpose", "Exchanges since the start")
_CONTROL = ("Reference", "Control", "How it is enforced", "Evidence now", "Test")


def _site(facts: Facts) -> str:
    return "an undeclared site" if facts.residency is None else facts.residency.site


def _processing(facts: Facts) -> Iterator[tuple[str, str]]:
    customers, settings = facts.customers, facts.config
    images, records = sum(one.images for one in customers), sum(one.records for one in customers)
    residency = facts.residency
    declared = () if residency is None else residency.destinations
    countries = sorted({one.country for one in declared})
    erasures = ", ".join(f"{kind}: {count}" for kind, count in sorted(facts.erasures.items()))
    yield from _who_and_where(residency)
    yield "Controllers it is processed for", f"{len(customers)} customers, each named below"
    yield "Recognition and search", "images in memory alone, for as long as a call takes"
    yield (
        "Vectors and metadata",
        f"{records} records of {sum(one.collections for one in customers)} collections",
    )
    yield "Training images", f"{images} images, under agreements of the kind training-data"
    yield "Results of asynchronous requests", f"kept for {settings.requests.keep_seconds / 86_400:g} days"
    yield "Links to images", _links(settings.datasets.link_seconds, sum(one.public for one in customers))
    yield "Countries of recipients", ", ".join(countries) or "none: no destination is declared"
    yield "Erasures certified", erasures or "none yet"
    yield "Security measures", "the controls below, each with its evidence"


def _links(seconds: int, public: int) -> str:
    told = f"end after {seconds} seconds"
    return f"{told}; not those of {public} datasets that their customers made public" if public else told


def _who_and_where(residency: Residency | None) -> Iterator[tuple[str, str]]:
    """Who and where, as the residency file says."""
    if residency is None:
        yield "Place of processing", _UNDECLARED
        return
    tables: dict[str, Sequence[Volume | BackupTarget | LogSink]] = {
        "Volumes": residency.volumes,
        "Backups": residency.backups,
        "Logs": residency.logs,
    }
    yield "Processor", residency.processor or _UNDECLARED
    yield "Controller of the appliance", residency.controller or _UNDECLARED
    yield "Place of processing", f"{residency.site}, {residency.country}"
    for term, table in tables.items():
        yield term, ", ".join(f"{one.name} ({one.country})" for one in table) or _UNDECLARED


def _customer(one: Processing) -> Sequence[str]:
    agreements = ", ".join(f"{kind} ({state})" for kind, state in one.agreements) or "none"
    suspended = "" if one.suspended_at is None else f"; suspended {moment(one.suspended_at)}"
    retention = "until it deletes"
    if one.retained:
        retention = f"{one.retained} datasets, {one.retention_days} days at most"
    return (
        f"{one.name}\n{one.id}",
        moment(one.created_at) + suspended,
        agreements,
        str(one.datasets),
        str(one.images),
        f"{one.bytes / _GIB:.2f}",
        retention,
        str(one.collections),
        str(one.records),
        str(one.requests),
        str(one.feeds),
    )


def _destinations(facts: Facts) -> Iterator[Sequence[str]]:
    for one in () if facts.residency is None else facts.residency.destinations:
        counts = [(outcome, n) for (name, outcome), n in sorted(facts.exchanges.items()) if name == one.name]
        told = ", ".join(f"{outcome}: {count}" for outcome, count in counts) or "none"
        yield (
            one.name,
            one.host,
            str(one.port),
            ", ".join(map(str, one.cidrs)),
            one.country,
            one.purpose,
            told,
        )


def _findings(facts: Facts) -> Iterator[Sequence[str]]:
    for one in facts.status.get("findings", ()):
        yield str(one["severity"]), str(one["key"]), str(one["message"])


def _controls(facts: Facts) -> Iterator[Sequence[str]]:
    for one in CONTROLS:
        references = "\n".join(one.references).replace(")(", f"){_JOINED}(")  # each on one line
        yield references, one.control, one.enforced, one.evidence(facts), "\n".join(one.tests)


def _described(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>\n" for term, text in pairs)
    return f"<dl>{rows}</dl>\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    if not body:
        return "<p>None.</p>\n"
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>\n"


def _cell(text: str) -> str:
    lines = "<br>".join(escape(line) for line in text.split("\n"))
    return f"<td><code>{lines}</code></td>" if text.startswith("tests/") else f"<td>{lines}</td>"
