-- Records that no snapshot brings back: what has one of these handles, and a label below this one, is left out when a
-- snapshot is restored. Written with the deletion, and gone with the collection's key.
CREATE TABLE erased_records (
    container TEXT NOT NULL,                              -- of the collection: a restored one goes on with the same
    handle    BLOB NOT NULL CHECK (length(handle) = 16),  -- keyed hash of the caller's id
    label     INTEGER NOT NULL,                           -- what was inserted after the deletion has this one or a higher
    PRIMARY KEY (container, handle)
) STRICT, WITHOUT ROWID;
