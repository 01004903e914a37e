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
