-- What a token may ask about, space separated ids; NULL for all of its customer's.
ALTER TABLE tokens ADD COLUMN collections TEXT;
ALTER TABLE tokens ADD COLUMN tasks TEXT;

-- Written once a minute for all tokens that were used in it.
ALTER TABLE tokens ADD COLUMN last_used_at INTEGER;

-- Who made a request: a token that knows of some tasks alone sees its own requests alone.
ALTER TABLE requests ADD COLUMN token TEXT;
