-- What a hand in the ledger does not change: grants, and what the audit log says of grants and tokens.

-- Over the row of a grant and its approvals, as the appliance has written them: without the right MAC it is none.
-- Those of before have none, and end with this.
ALTER TABLE grants ADD COLUMN mac BLOB NOT NULL DEFAULT x'';

CREATE INDEX audit_of_revoked_grants ON audit (subject) WHERE event = 'grant.revoke';

-- Tokens of recovery, by the entries that told their customers of them.
CREATE INDEX audit_of_recoveries ON audit (subject, time)
    WHERE event = 'token.add' AND instr(details, '"recovery":true');
