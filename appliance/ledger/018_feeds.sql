-- A collection may follow a feed: where that is, what each record was made of, and how the last runs went.

CREATE TABLE feeds (
    collection INTEGER PRIMARY KEY REFERENCES collections (number),
    source     BLOB NOT NULL,           -- sealed: URL, headers, mapping, schedule
    validators BLOB,                    -- sealed: by what its host knows the last feed of which nothing is left to do
    created_at INTEGER NOT NULL,
    due_at     INTEGER                  -- unix milliseconds; NULL: when somebody asks
) STRICT;

CREATE INDEX feeds_due ON feeds (due_at) WHERE due_at IS NOT NULL;

-- Of records that a feed brought; they go with their records, and with the vectors that they speak of.
CREATE TABLE feed_items (
    key   INTEGER PRIMARY KEY REFERENCES records (key) ON DELETE CASCADE,
    image BLOB NOT NULL CHECK (length(image) = 16), -- keyed hash of the image's URL
    words BLOB NOT NULL CHECK (length(words) = 16)  -- keyed hash of the metadata
) STRICT;

CREATE TABLE feed_runs (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    collection INTEGER NOT NULL REFERENCES collections (number),
    state      TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'needs_confirmation', 'done', 'unchanged', 'failed')),
    asked      INTEGER NOT NULL CHECK (asked IN (0, 1)),       -- by somebody: it looks at the feed though its host says it is the same
    may_go     INTEGER NOT NULL DEFAULT 0 CHECK (may_go >= 0), -- so many items were confirmed to be gone
    began_at   INTEGER NOT NULL,                               -- unix milliseconds
    ended_at   INTEGER,
    report     BLOB                                            -- sealed: counts, and the ids behind the first of them
) STRICT;

CREATE INDEX feed_runs_of_collection ON feed_runs (collection, number);
