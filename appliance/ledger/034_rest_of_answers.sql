-- What was answered is kept by the time by which images rest, which no clock that is set moves.

-- From when on a request that has ended rests, unix milliseconds of that time.
ALTER TABLE requests ADD COLUMN rests_from INTEGER;

-- What the clock had been set by is in the images' own times up to migration 032, and in none that came after.
UPDATE requests SET rests_from = finished_at
    + (SELECT coalesce(sum(milliseconds) FILTER (WHERE until >= requests.finished_at), 0)
        - coalesce(sum(milliseconds) FILTER (WHERE reached IS NOT NULL), 0) FROM clock_corrections)
    WHERE finished_at IS NOT NULL;

DROP INDEX requests_finished;
CREATE INDEX requests_resting ON requests (rests_from) WHERE rests_from IS NOT NULL;

-- They were kept for a day, and `until` is of that time now.
UPDATE search_replies SET until = until
    + (SELECT coalesce(sum(milliseconds) FILTER (WHERE clock_corrections.until >= search_replies.until - 86400000), 0)
        - coalesce(sum(milliseconds) FILTER (WHERE reached IS NOT NULL), 0) FROM clock_corrections);
