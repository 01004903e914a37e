-- Times are unix milliseconds. Ids are random; names and other personal text never enter the audit log.

CREATE TABLE customers (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id           TEXT PRIMARY KEY,
    customer     TEXT NOT NULL REFERENCES customers (id),
    mac          BLOB NOT NULL CHECK (length(mac) = 32), -- HMAC-SHA256 of the whole token; the token is not kept
    scopes       TEXT NOT NULL,                          -- space separated, sorted
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    revoked_at   INTEGER,
    rotated_from TEXT UNIQUE REFERENCES tokens (id)
) STRICT, WITHOUT ROWID;

CREATE INDEX tokens_by_customer ON tokens (customer, created_at);

CREATE TABLE audit (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    time       INTEGER NOT NULL,
    actor_kind TEXT NOT NULL CHECK (actor_kind IN ('token', 'operator', 'system')),
    actor_id   TEXT NOT NULL,
    request    TEXT,
    event      TEXT NOT NULL,
    customer   TEXT,          -- no foreign key: the log outlives an erased customer
    subject    TEXT,
    details    TEXT NOT NULL  -- a JSON object
) STRICT;

CREATE INDEX audit_by_customer ON audit (customer, seq);

CREATE TRIGGER audit_rows_never_change BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE (ABORT, 'the audit log is append-only');
END;

CREATE TRIGGER audit_rows_never_go BEFORE DELETE ON audit
BEGIN
    SELECT RAISE (ABORT, 'the audit log is append-only');
END;
