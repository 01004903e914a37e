-- What changes of collections were answered, for those that are asked for again under the same key.

CREATE TABLE search_replies (
    number     INTEGER PRIMARY KEY,
    customer   TEXT NOT NULL REFERENCES customers (id),
    key        TEXT NOT NULL,           -- the caller's Idempotency-Key
    collection INTEGER NOT NULL REFERENCES collections (number),
    digest     BLOB NOT NULL,           -- a keyed digest of what was asked
    status     INTEGER NOT NULL,        -- of HTTP
    reply      BLOB NOT NULL,           -- sealed: JSON, which may hold metadata
    until      INTEGER NOT NULL         -- unix milliseconds
) STRICT;

CREATE UNIQUE INDEX search_replies_once ON search_replies (customer, key);
CREATE INDEX search_replies_ended ON search_replies (until);
CREATE INDEX search_replies_of_collection ON search_replies (collection);
