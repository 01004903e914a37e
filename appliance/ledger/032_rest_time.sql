-- Images rest by the time that is believed, less what the clock was set by until then: no clock that is set moves
-- that, so it is the same for all, whichever way and however often the clock was set around them.

-- What was believed as the correction came to count, unix milliseconds; none for those of before, which are in
-- the images' own times.
ALTER TABLE clock_corrections ADD COLUMN reached INTEGER;

-- From when on an image rests, unix milliseconds of that time; without one it is never too old.
ALTER TABLE images ADD COLUMN rests_from INTEGER;

UPDATE images SET rests_from = created_at
    + (SELECT coalesce(sum(milliseconds), 0) FROM clock_corrections WHERE until >= images.created_at);
