-- Records whose id or metadata is known not to be what was sealed.
CREATE TABLE damaged_records (
    key      INTEGER PRIMARY KEY,
    found_at INTEGER NOT NULL           -- unix milliseconds
) STRICT;
