-- An Idempotency-Key is known by a keyed hash of it and of the token that sent it. Answers to changes of records had
-- metadata in them, and are forgotten: they were kept for a day.
DROP TABLE search_replies;
CREATE TABLE search_replies (
    number     INTEGER PRIMARY KEY,
    customer   TEXT NOT NULL REFERENCES customers (id),
    handle     BLOB NOT NULL CHECK (length(handle) = 32),
    collection INTEGER NOT NULL REFERENCES collections (number),
    digest     BLOB NOT NULL,           -- a keyed digest of what was asked
    status     INTEGER NOT NULL,        -- of HTTP
    reply      BLOB NOT NULL,           -- sealed under the collection's key: JSON
    until      INTEGER NOT NULL         -- unix milliseconds
) STRICT;

CREATE UNIQUE INDEX search_replies_once ON search_replies (customer, handle);
CREATE INDEX search_replies_ended ON search_replies (until);
CREATE INDEX search_replies_of_collection ON search_replies (collection);
