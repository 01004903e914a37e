-- A doubt of the clock lies with the time that it is of, beside the sealed files and under the same MAC.
ALTER TABLE latest_time DROP COLUMN doubted_until;
