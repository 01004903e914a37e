-- Names that stand for a collection of the customer, and go over to another one in one step.

CREATE TABLE aliases (
    number     INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,    -- also what the keyring knows its key by
    customer   TEXT NOT NULL REFERENCES customers (id),
    name       BLOB NOT NULL,           -- sealed
    collection TEXT NOT NULL,           -- its id; stays when it is removed, so that who asks is told which it was
    changed_at INTEGER NOT NULL         -- unix milliseconds
) STRICT;

-- How far the present proof of all frames of vectors has come.
CREATE TABLE frame_scrub (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    position INTEGER,                   -- the key of the last frame that was proven; NULL: all are
    began_at INTEGER NOT NULL           -- unix milliseconds
) STRICT;

INSERT INTO frame_scrub VALUES (1, NULL, 0);

-- Frames that are known not to be what was sealed.
CREATE TABLE damaged_frames (
    key      INTEGER PRIMARY KEY,
    found_at INTEGER NOT NULL           -- unix milliseconds
) STRICT;
