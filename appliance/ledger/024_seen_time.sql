-- A doubt of the clock lies with the time that it is of, beside the sealed files and under the same MAC.
ALTER TABLE latest_time DROP COLUMN doubted_until;

-- A clock that was set while the appliance ran: what it had stamped until then grew no older by it. Unix milliseconds.
CREATE TABLE clock_corrections (
    until        INTEGER PRIMARY KEY,
    milliseconds INTEGER NOT NULL
) STRICT;

-- What the clock said as the latest time was told, unix milliseconds: so the time off counts where that was ahead.
ALTER TABLE latest_time ADD COLUMN clock INTEGER;
