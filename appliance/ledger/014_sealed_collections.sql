-- Collections have keys of their own: what callers wrote (names, ids, metadata) and every vector rest sealed.
-- What was in clear is moved aside here whole; the next start seals it, and drops these tables with their pages.
-- So it goes with replies, which were sealed under the service's key.

DROP INDEX records_by_external_id;
DROP INDEX collections_by_name;
DROP INDEX search_replies_once;
DROP INDEX search_replies_ended;
DROP INDEX search_replies_of_collection;
ALTER TABLE records RENAME TO clear_records;
ALTER TABLE search_replies RENAME TO clear_replies;
ALTER TABLE collections RENAME TO clear_collections;

CREATE TABLE collections (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused: it is part of its records' keys
    id         TEXT NOT NULL UNIQUE,
    container  TEXT NOT NULL UNIQUE,                -- whose key this is; emptied, it goes on with another
    customer   TEXT NOT NULL REFERENCES customers (id),
    name       BLOB,                                -- sealed; NULL only until the start after this migration
    backbone   TEXT NOT NULL,                       -- name@version: vectors of another one are not comparable
    dim        INTEGER NOT NULL CHECK (dim BETWEEN 1 AND 4096),
    created_at INTEGER NOT NULL,
    next_label INTEGER NOT NULL DEFAULT 0,          -- labels rise by insertion and are never reused
    count      INTEGER NOT NULL DEFAULT 0 CHECK (count >= 0),
    removed    INTEGER NOT NULL DEFAULT 0 CHECK (removed IN (0, 1)) -- set first; then its key and its rows go
) STRICT;

INSERT INTO collections
    SELECT number, id, id, customer, NULL, backbone, dim, created_at, next_label, count, removed FROM clear_collections;
DELETE FROM sqlite_sequence WHERE name = 'collections';
INSERT INTO sqlite_sequence (name, seq)
    SELECT 'collections', seq FROM sqlite_sequence WHERE name = 'clear_collections';

CREATE INDEX collections_of_customer ON collections (customer, number);

-- The key is number * 2^32 + label, so that a collection's rows lie side by side in order of insertion.
CREATE TABLE records (
    key        INTEGER PRIMARY KEY,
    collection INTEGER NOT NULL REFERENCES collections (number),
    handle     BLOB NOT NULL CHECK (length(handle) = 16), -- keyed hash of the exact bytes of the caller's id
    words      BLOB NOT NULL,                             -- sealed: the caller's id and metadata
    CHECK (key >> 32 = collection)
) STRICT;

CREATE UNIQUE INDEX records_by_handle ON records (collection, handle);

-- Vectors, many to a row. The key is number * 2^32 + a label: those in the frame are not below it, and below the
-- label of the next frame.
CREATE TABLE frames (
    key        INTEGER PRIMARY KEY,
    collection INTEGER NOT NULL REFERENCES collections (number),
    count      INTEGER NOT NULL CHECK (count > 0),
    content    BLOB NOT NULL,                             -- sealed: labels and float32 vectors
    CHECK (key >> 32 = collection)
) STRICT;

CREATE TABLE search_replies (
    number     INTEGER PRIMARY KEY,
    customer   TEXT NOT NULL REFERENCES customers (id),
    key        TEXT NOT NULL,           -- the caller's Idempotency-Key
    collection INTEGER NOT NULL REFERENCES collections (number),
    digest     BLOB NOT NULL,           -- a keyed digest of what was asked
    status     INTEGER NOT NULL,        -- of HTTP
    reply      BLOB NOT NULL,           -- sealed under the collection's key: JSON, which may hold metadata
    until      INTEGER NOT NULL         -- unix milliseconds
) STRICT;

CREATE UNIQUE INDEX search_replies_once ON search_replies (customer, key);
CREATE INDEX search_replies_ended ON search_replies (until);
CREATE INDEX search_replies_of_collection ON search_replies (collection);
