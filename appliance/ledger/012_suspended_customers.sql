-- Of a suspended customer no token and no link is taken, and no webhook is called, until it is resumed.
ALTER TABLE customers ADD COLUMN suspended_at INTEGER;
