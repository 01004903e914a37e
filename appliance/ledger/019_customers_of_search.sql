-- A name rests sealed: its keyed hash finds it, and keeps it unique among a customer's collections.
-- NULL only until the start after this migration, or where the name does not open.
ALTER TABLE collections ADD COLUMN name_handle BLOB CHECK (length(name_handle) = 16);

CREATE UNIQUE INDEX collections_by_name ON collections (customer, name_handle) WHERE NOT removed;

-- Lists are by age.
DROP INDEX collections_of_customer;
CREATE INDEX collections_of_customer ON collections (customer, created_at, number);

-- What a customer has of what is limited; collections whose erasure has begun are its no more.
CREATE TABLE search_usage (
    customer    TEXT PRIMARY KEY REFERENCES customers (id),
    collections INTEGER NOT NULL CHECK (collections >= 0),
    records     INTEGER NOT NULL CHECK (records >= 0)
) STRICT, WITHOUT ROWID;

INSERT INTO search_usage
    SELECT customer, count(*), sum(count) FROM collections WHERE NOT removed GROUP BY customer;

CREATE TRIGGER collection_added AFTER INSERT ON collections WHEN NOT new.removed BEGIN
    INSERT OR IGNORE INTO search_usage VALUES (new.customer, 0, 0);
    UPDATE search_usage SET collections = collections + 1, records = records + new.count
        WHERE customer = new.customer;
END;

CREATE TRIGGER collection_counted AFTER UPDATE OF count ON collections WHEN NOT new.removed BEGIN
    UPDATE search_usage SET records = records + new.count - old.count WHERE customer = new.customer;
END;

CREATE TRIGGER collection_removed AFTER UPDATE OF removed ON collections WHEN new.removed AND NOT old.removed BEGIN
    UPDATE search_usage SET collections = collections - 1, records = records - old.count
        WHERE customer = new.customer;
END;
