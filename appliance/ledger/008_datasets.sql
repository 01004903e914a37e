-- Agreements, datasets and their images. What a customer wrote (names, metadata) is sealed under the dataset's
-- key; in clear are ids, sizes, states and times. Times are unix milliseconds.

CREATE TABLE agreements (
    id         TEXT PRIMARY KEY,
    customer   TEXT NOT NULL REFERENCES customers (id),
    kind       TEXT NOT NULL CHECK (kind IN ('training-data')),
    signed_at  INTEGER NOT NULL,
    active_at  INTEGER,           -- NULL until the customer has accepted it
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX agreements_of_customer ON agreements (customer, signed_at);
CREATE UNIQUE INDEX one_standing_agreement ON agreements (customer, kind) WHERE revoked_at IS NULL;

-- A dataset is a workspace on the wire.
CREATE TABLE datasets (
    number        INTEGER PRIMARY KEY AUTOINCREMENT, -- never reused: it is part of its images' keys
    id            TEXT NOT NULL UNIQUE,
    customer      TEXT NOT NULL REFERENCES customers (id),
    name          BLOB,                              -- sealed; NULL for the default dataset of a customer
    visibility    TEXT NOT NULL CHECK (visibility IN ('link', 'public', 'restricted')),
    keep_metadata INTEGER NOT NULL CHECK (keep_metadata IN (0, 1)),
    retention_days INTEGER CHECK (retention_days > 0),
    epoch         INTEGER NOT NULL DEFAULT 0,        -- part of every link's signature: one more ends them all
    created_at    INTEGER NOT NULL,
    next_position INTEGER NOT NULL DEFAULT 0,
    images        INTEGER NOT NULL DEFAULT 0 CHECK (images >= 0),
    bytes         INTEGER NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    erased_at     INTEGER                            -- set first; then its key, its files and its rows go
) STRICT;

CREATE INDEX datasets_of_customer ON datasets (customer, number);
CREATE UNIQUE INDEX one_default_dataset ON datasets (customer) WHERE name IS NULL AND erased_at IS NULL;

-- The key is number * 2^32 + position, so that a dataset's images lie side by side in order of upload.
CREATE TABLE images (
    key        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    dataset    INTEGER NOT NULL REFERENCES datasets (number),
    created_at INTEGER NOT NULL,
    format     TEXT NOT NULL CHECK (format IN ('jpeg', 'png', 'webp')),
    width      INTEGER NOT NULL,
    height     INTEGER NOT NULL,
    size       INTEGER NOT NULL CHECK (size > 0),  -- of the image; its thumbnail follows it in the same file
    thumbnail  INTEGER NOT NULL CHECK (thumbnail >= 0),
    content    BLOB NOT NULL CHECK (length(content) = 32), -- keyed hash of what was uploaded
    meta_data  BLOB,                               -- sealed JSON
    scrubbed_at INTEGER,                           -- when every byte was last proven
    damaged    INTEGER NOT NULL DEFAULT 0 CHECK (damaged IN (0, 1)),
    deleted_at INTEGER,                            -- set first; then its file and this row go
    CHECK (key >> 32 = dataset)
) STRICT;

CREATE UNIQUE INDEX images_by_content ON images (dataset, content) WHERE deleted_at IS NULL;
CREATE INDEX images_being_deleted ON images (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX images_to_scrub ON images (coalesce(scrubbed_at, created_at)) WHERE deleted_at IS NULL AND NOT damaged;
CREATE INDEX images_damaged ON images (dataset) WHERE damaged;

-- Ids that were erased, for whoever restores an older ledger: they are erased again.
CREATE TABLE tombstones (
    id        TEXT PRIMARY KEY,
    dataset   TEXT NOT NULL,
    erased_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The latest time that was ever seen: links that ended stay ended when the clock is set back.
CREATE TABLE latest_time (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    time INTEGER NOT NULL
) STRICT;

-- Which folder of sealed files belongs to this ledger: its id lies in the folder itself.
CREATE TABLE data_folder (
    id TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
