-- The path under which an image was imported and the size that it had then, sealed; and a keyed hash of the path,
-- for look-ups: a path names one image of a dataset.
ALTER TABLE images ADD COLUMN source BLOB;
ALTER TABLE images ADD COLUMN named BLOB CHECK (length(named) = 32);

CREATE UNIQUE INDEX images_by_name ON images (dataset, named) WHERE named IS NOT NULL AND deleted_at IS NULL;
