-- What was erased and when, signed by the appliance. A certificate outlives what it tells of, so that nothing here
-- refers to anything; it holds ids and counts, and of records keyed digests of their ids.

CREATE TABLE certificates (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    id        TEXT NOT NULL UNIQUE,
    kind      TEXT NOT NULL CHECK (kind IN ('customer', 'dataset', 'image', 'collection', 'record')),
    customer  TEXT NOT NULL,
    subject   TEXT NOT NULL,
    erased_at INTEGER NOT NULL,  -- unix milliseconds
    statement TEXT NOT NULL,     -- JSON, exactly as it is signed
    signature BLOB NOT NULL CHECK (length(signature) = 64)
) STRICT;

CREATE INDEX certificates_of_customer ON certificates (customer, number);

CREATE TRIGGER certificates_never_change BEFORE UPDATE ON certificates
BEGIN
    SELECT RAISE (ABORT, 'certificates of erasure are append-only');
END;

CREATE TRIGGER certificates_never_go BEFORE DELETE ON certificates
BEGIN
    SELECT RAISE (ABORT, 'certificates of erasure are append-only');
END;

-- Of an erased customer the row stays, with its id for a name: so whatever still asks is told that it is suspended,
-- and a restored backup that it was erased.
ALTER TABLE customers ADD COLUMN erased_at INTEGER; -- unix milliseconds; set first, then its keys and all else go
ALTER TABLE customers ADD COLUMN erasing TEXT;      -- JSON: counts of what there was; NULL once all of it is gone

-- The id that an emptied collection had, while what was in it is erased under a tombstone.
ALTER TABLE collections ADD COLUMN emptied TEXT;

-- 1 for a row that is no collection of its own: filled unseen, or what a restored snapshot has replaced. Erasing it
-- erases no collection, and is not certified.
ALTER TABLE collections ADD COLUMN spare INTEGER NOT NULL DEFAULT 0;

-- Erasures up to this entry of the audit log are from before there were certificates.
CREATE TABLE certified_since (seq INTEGER NOT NULL) STRICT;
INSERT INTO certified_since SELECT coalesce(max(seq), 0) FROM audit;
