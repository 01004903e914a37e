-- Over the row of a token, as the appliance has written it: without the right MAC its token is not taken.
-- Those of before get theirs at the next start, which is the last that gives any.
ALTER TABLE tokens ADD COLUMN row_mac BLOB NOT NULL DEFAULT x'';

CREATE INDEX audit_of_starts ON audit (seq) WHERE event = 'daemon.start';

-- Tokens whose rows were found to be changed.
CREATE INDEX audit_of_damaged_tokens ON audit (subject) WHERE event = 'token.damaged';
