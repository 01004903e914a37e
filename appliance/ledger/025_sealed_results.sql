-- What asynchronous requests were answered rests sealed under their customer's key, and so do their webhooks. An
-- Idempotency-Key is known by a keyed hash of it and of the token that sent it.

-- What was in clear, or under a key that is no customer's, until the first start has sealed it.
CREATE TABLE clear_requests (
    number   INTEGER PRIMARY KEY REFERENCES requests (number) ON DELETE CASCADE,
    response BLOB, -- JSON
    webhook  BLOB  -- sealed under the service's key
) STRICT;

INSERT INTO clear_requests
    SELECT number, response, webhook FROM requests WHERE response IS NOT NULL OR webhook IS NOT NULL;

-- Keys of before were in clear, and are forgotten: nothing tells which token sent each.
DROP INDEX requests_once;
ALTER TABLE requests DROP COLUMN idempotency_key;
ALTER TABLE requests ADD COLUMN handle BLOB CHECK (length(handle) = 32);
UPDATE requests SET response = NULL, webhook = NULL, digest = NULL;
CREATE UNIQUE INDEX requests_once ON requests (customer, handle) WHERE handle IS NOT NULL;

-- So are the answers to changes of records, which had metadata in them; they were kept for a day.
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
