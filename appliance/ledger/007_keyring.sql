-- Which keyring the rows of this ledger are sealed with; it lies beside the ledger, in a file of its own.

CREATE TABLE keyring (
    id BLOB PRIMARY KEY CHECK (length(id) = 16)
) STRICT, WITHOUT ROWID;
