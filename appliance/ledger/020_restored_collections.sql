-- A collection that is filled unseen is marked as removed, so that what is left of it after a crash is erased. Once
-- its records are all there it is shown, and is its customer's from then on.
CREATE TRIGGER collection_shown AFTER UPDATE OF removed ON collections WHEN old.removed AND NOT new.removed BEGIN
    UPDATE search_usage SET collections = collections + 1, records = records + new.count
        WHERE customer = new.customer;
END;
