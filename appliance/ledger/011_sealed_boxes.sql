-- Boxes were in clear beside the sealed words of their objects. They are moved here, and the next start seals them.
CREATE TABLE clear_boxes (
    object INTEGER PRIMARY KEY REFERENCES objects (key) ON DELETE CASCADE,
    xmin   ANY NOT NULL,
    ymin   ANY NOT NULL,
    xmax   ANY NOT NULL,
    ymax   ANY NOT NULL
) STRICT;

INSERT INTO clear_boxes SELECT key, xmin, ymin, xmax, ymax FROM objects;

-- In this order: a column goes with its own checks, not with those of others.
ALTER TABLE objects DROP COLUMN xmax;
ALTER TABLE objects DROP COLUMN ymax;
ALTER TABLE objects DROP COLUMN xmin;
ALTER TABLE objects DROP COLUMN ymin;
