-- Asynchronous requests: what was asked for and how it ended, never the images.

CREATE TABLE requests (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    customer        TEXT NOT NULL REFERENCES customers (id),
    type            TEXT NOT NULL,
    status          TEXT NOT NULL,
    created_at      INTEGER NOT NULL, -- unix milliseconds, as all times here
    finished_at     INTEGER,
    response        BLOB,             -- JSON
    idempotency_key TEXT,
    digest          BLOB,             -- a keyed digest of what was sent with the idempotency key
    webhook         BLOB,             -- sealed: where to, and with which headers
    attempts        INTEGER NOT NULL DEFAULT 0,
    due_at          INTEGER           -- of the webhook's next attempt
) STRICT;

CREATE INDEX requests_of_customer ON requests (customer, number);
CREATE INDEX requests_finished ON requests (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX requests_due ON requests (due_at) WHERE due_at IS NOT NULL;
CREATE UNIQUE INDEX requests_once ON requests (customer, idempotency_key) WHERE idempotency_key IS NOT NULL;
