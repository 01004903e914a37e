-- Access on request. Times are unix milliseconds.

-- When the customer first used a token: from then on it alone issues tokens. Whoever wrote to the audit log did.
ALTER TABLE customers ADD COLUMN claimed_at INTEGER;
ALTER TABLE customers ADD COLUMN resumed_at INTEGER; -- when it was last taken back after a suspension
UPDATE customers SET claimed_at =
    (SELECT min(time) FROM audit WHERE audit.customer = customers.id AND actor_kind = 'token');

-- A token that an operator issued for a customer that has lost its own: valid a day later.
ALTER TABLE tokens ADD COLUMN recovery INTEGER NOT NULL DEFAULT 0 CHECK (recovery IN (0, 1));

-- The reason is sealed under the customer's key. Whom and what it is about are ids.
CREATE TABLE grants (
    id        TEXT PRIMARY KEY,
    customer  TEXT NOT NULL REFERENCES customers (id) ON DELETE CASCADE,
    operator  TEXT NOT NULL,    -- a uid, as the audit log names operators
    dataset   TEXT,
    images    TEXT,             -- a JSON array of ids
    hours     INTEGER NOT NULL CHECK (hours BETWEEN 1 AND 72),
    reason    BLOB NOT NULL,
    asked_by  TEXT NOT NULL CHECK (asked_by IN ('operator', 'customer')),
    asked_at  INTEGER NOT NULL,
    opened_at INTEGER,          -- NULL until enough of the customer's tokens have approved it
    ends_at   INTEGER NOT NULL, -- until then: when it is too late to answer
    closed    TEXT CHECK (closed IN ('denied', 'revoked')),
    closed_at INTEGER,
    CHECK ((dataset IS NULL) <> (images IS NULL)),
    CHECK ((closed IS NULL) = (closed_at IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX grants_of_customer ON grants (customer, asked_at);

CREATE TABLE grant_approvals (
    grant_id    TEXT NOT NULL REFERENCES grants (id) ON DELETE CASCADE,
    token       TEXT NOT NULL,  -- its public id
    approved_at INTEGER NOT NULL,
    PRIMARY KEY (grant_id, token)
) STRICT, WITHOUT ROWID;

-- Agreements of further kinds, with what was signed. The words of the paper are sealed under the customer's key.
CREATE TABLE agreements_of_all_kinds (
    id          TEXT PRIMARY KEY,
    customer    TEXT NOT NULL REFERENCES customers (id),
    kind        TEXT NOT NULL CHECK (kind IN ('training-data', 'nda', 'dpa')),
    signed_at   INTEGER NOT NULL,
    active_at   INTEGER,           -- NULL until the customer has accepted it
    revoked_at  INTEGER,
    valid_until INTEGER,           -- NULL: until it is revoked
    signed_on   TEXT,              -- a date: when both had signed the paper
    text_sha256 TEXT CHECK (length(text_sha256) = 64),
    parties     BLOB,              -- sealed
    document    BLOB               -- sealed
) STRICT;

INSERT INTO agreements_of_all_kinds (id, customer, kind, signed_at, active_at, revoked_at)
    SELECT id, customer, kind, signed_at, active_at, revoked_at FROM agreements;
DROP TABLE agreements;
ALTER TABLE agreements_of_all_kinds RENAME TO agreements;

CREATE INDEX agreements_of_customer ON agreements (customer, signed_at);
CREATE UNIQUE INDEX one_standing_agreement ON agreements (customer, kind) WHERE revoked_at IS NULL;
