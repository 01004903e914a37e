-- What a token may ask about, space separated ids; NULL for all of its customer's.
ALTER TABLE tokens ADD COLUMN collections TEXT;
ALTER TABLE tokens ADD COLUMN tasks TEXT;

-- Written once a minute for all tokens that were used in it.
ALTER TABLE tokens ADD COLUMN last_used_at INTEGER;

-- Who made a request: a token that knows of some tasks alone sees its own requests alone.
ALTER TABLE requests ADD COLUMN token TEXT;

-- Rates of a token: NULL for what the configuration says, 0 for none.
ALTER TABLE tokens ADD COLUMN requests_per_minute INTEGER CHECK (requests_per_minute >= 0);
ALTER TABLE tokens ADD COLUMN bytes_per_minute INTEGER CHECK (bytes_per_minute >= 0);

-- How much a customer may have; NULL for what the configuration says.
ALTER TABLE customers ADD COLUMN max_images INTEGER CHECK (max_images >= 0);
ALTER TABLE customers ADD COLUMN max_collections INTEGER CHECK (max_collections >= 0);
ALTER TABLE customers ADD COLUMN max_vectors INTEGER CHECK (max_vectors >= 0);
ALTER TABLE customers ADD COLUMN max_bytes INTEGER CHECK (max_bytes >= 0);
ALTER TABLE customers ADD COLUMN max_jobs INTEGER CHECK (max_jobs >= 0);

-- The subject of the client's certificate (RFC 4514) without which the token is not taken.
ALTER TABLE tokens ADD COLUMN client_subject TEXT;
