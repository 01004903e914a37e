-- What has been ended stays so, whatever its row says by now: the entries that told of it.
CREATE INDEX audit_of_revoked_tokens ON audit (subject, time)
    WHERE (event = 'token.revoke' OR (event = 'token.rotate' AND instr(details, '"overlap_seconds":0,')));

CREATE INDEX audit_of_revoked_agreements ON audit (subject, time) WHERE event = 'agreement.revoke';

DROP INDEX audit_of_revoked_grants;
CREATE INDEX audit_of_closed_grants ON audit (subject, event) WHERE event IN ('grant.revoke', 'grant.deny');
