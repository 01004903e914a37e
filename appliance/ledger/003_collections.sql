-- Collections of visual search and their records: the truth that vectors in RAM and graphs are made from.

CREATE TABLE collections (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,   -- never reused: it is part of its records' keys
    id         TEXT NOT NULL UNIQUE,
    customer   TEXT NOT NULL REFERENCES customers (id),
    name       TEXT NOT NULL,
    backbone   TEXT NOT NULL,                       -- name@version: vectors of another one are not comparable
    dim        INTEGER NOT NULL CHECK (dim BETWEEN 1 AND 4096),
    created_at INTEGER NOT NULL,
    next_label INTEGER NOT NULL DEFAULT 0,          -- labels rise by insertion and are never reused
    count      INTEGER NOT NULL DEFAULT 0 CHECK (count >= 0),
    removed    INTEGER NOT NULL DEFAULT 0 CHECK (removed IN (0, 1)) -- 1 while its records are being erased
) STRICT;

CREATE UNIQUE INDEX collections_by_name ON collections (customer, name) WHERE NOT removed;

-- The key is number * 2^32 + label, so that a collection's records lie side by side in order of insertion and
-- are loaded by one range scan. A vector and its metadata share the row: of a 512-wide vector only one fits a page.
CREATE TABLE records (
    key         INTEGER PRIMARY KEY,
    collection  INTEGER NOT NULL REFERENCES collections (number),
    external_id BLOB NOT NULL CHECK (length(external_id) > 0), -- exact UTF-8 bytes of the caller's id
    vector      BLOB NOT NULL,                                 -- float32, little-endian, of length 1
    metadata    BLOB NOT NULL,                                 -- a JSON object
    CHECK (key >> 32 = collection)
) STRICT;

CREATE UNIQUE INDEX records_by_external_id ON records (collection, external_id);
