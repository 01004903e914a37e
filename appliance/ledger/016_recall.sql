-- What the graphs of a collection are tuned to find of the nearest records.
ALTER TABLE collections ADD COLUMN recall REAL NOT NULL DEFAULT 0.95 CHECK (recall BETWEEN 0.8 AND 0.999);
