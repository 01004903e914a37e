"""What the audit log says has ended, in SQL: who puts a row back leaves the entry that was signed."""

TOLD_OF_REVOCATION = (
    "(event = 'token.revoke' OR (event = 'token.rotate' AND instr(details, '\"overlap_seconds\":0,')))"
)
"""Of a row of the log: whether it tells that a token was revoked, also by rotation."""

TOKEN_REVOKED_AT = (
    "coalesce(tokens.revoked_at, (SELECT min(time) FROM audit INDEXED BY audit_of_revoked_tokens"  # noqa: S608
    f" WHERE {TOLD_OF_REVOCATION} AND subject = tokens.id))"
)
"""Of a row of tokens: when it was revoked, in unix milliseconds, NULL for never."""

REVOKED_BY_LOG_ALONE = (
    "SELECT tokens.id FROM audit INDEXED BY audit_of_revoked_tokens CROSS JOIN tokens ON id = subject"  # noqa: S608
    f" WHERE {TOLD_OF_REVOCATION} AND revoked_at IS NULL"
)
"""The ids of the tokens whose rows do not say it: none, unless a hand has changed them."""

AGREEMENT_REVOKED_AT = (
    "coalesce(agreements.revoked_at, (SELECT min(time) FROM audit INDEXED BY audit_of_revoked_agreements"
    " WHERE event = 'agreement.revoke' AND subject = agreements.id))"
)
"""Of a row of agreements, likewise."""

GRANT_CLOSED_BY = (
    "(SELECT event FROM audit INDEXED BY audit_of_closed_grants"
    " WHERE event IN ('grant.revoke', 'grant.deny') AND subject = grants.id LIMIT 1)"
)
"""Of a row of grants: the event that closed it, NULL for none."""

_OF_CUSTOMERS = (
    "FROM audit AS told INDEXED BY audit_of_customers"
    " WHERE told.event IN ('customer.suspend', 'customer.resume', 'customer.erase')"
)


def _suspended_since(customer: str) -> str:
    """Of a customer, by an expression for its id: when the log says that it was suspended, NULL if it is not.

    The last entry counts, by its number, whatever the clock said; but nothing comes after an erasure.
    """
    return (
        f"(SELECT iif(told.event = 'customer.resume', NULL, told.time) {_OF_CUSTOMERS}"
        f" AND told.subject = {customer} ORDER BY told.event = 'customer.erase' DESC, told.seq DESC LIMIT 1)"
    )


CUSTOMER_ERASED_AT = (
    f"coalesce(customers.erased_at, (SELECT min(told.time) {_OF_CUSTOMERS}"
    " AND told.event = 'customer.erase' AND told.subject = customers.id))"
)
"""Of a row of customers: when its erasure began, in unix milliseconds, NULL for never."""

CUSTOMER_SUSPENDED_AT = (
    f"coalesce(customers.suspended_at, customers.erased_at, {_suspended_since('customers.id')})"
)
"""Of a row of customers: since when it is suspended, NULL when it is not; one that is erased is, for good."""

CUSTOMER_RESUMED_AT = (
    f"coalesce((SELECT told.time {_OF_CUSTOMERS} AND told.event = 'customer.resume'"
    " AND told.subject = customers.id ORDER BY told.seq DESC LIMIT 1), customers.resumed_at)"
)
"""Of a row of customers: when it was last taken back after a suspension, NULL for never."""

CUSTOMER_CLAIMED_AT = (
    "coalesce(customers.claimed_at, (SELECT min(time) FROM audit INDEXED BY audit_of_claims"
    " WHERE event = 'customer.claim' AND subject = customers.id))"
)
"""Of a row of customers: when it first used a token, NULL for never."""

IS_SUSPENDED = f"SELECT 1 FROM customers WHERE id = ? AND {CUSTOMER_SUSPENDED_AT} IS NOT NULL"  # noqa: S608
"""A row for the id of a customer that is suspended, none for another."""

SUSPENDED_CUSTOMERS = (
    "SELECT id FROM customers WHERE coalesce(suspended_at, erased_at) IS NOT NULL"  # noqa: S608
    f" UNION SELECT ended.subject FROM (SELECT DISTINCT told.subject {_OF_CUSTOMERS}) AS ended"
    f" WHERE {_suspended_since('ended.subject')} IS NOT NULL"
)
"""The ids of all that are suspended, also of those that have no row any more."""

ERASED_CUSTOMERS = (
    "SELECT id FROM customers WHERE erased_at IS NOT NULL"  # noqa: S608
    f" UNION SELECT told.subject {_OF_CUSTOMERS} AND told.event = 'customer.erase'"
)
"""The ids of all whose erasure has begun."""
