-- Names that stand for a collection of the customer, and go over to another one in one step.

CREATE TABLE aliases (
    number     INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,    -- also what the keyring knows its key by
    customer   TEXT NOT NULL REFERENCES customers (id),
    name       BLOB NOT NULL,           -- sealed
    collection TEXT NOT NULL,           -- its id; stays when it is removed, so that who asks is told which it was
    changed_at INTEGER NOT NULL         -- unix milliseconds
) STRICT;
