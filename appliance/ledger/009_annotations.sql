-- What customers write about their images. Names, descriptions, colours, metadata and points are sealed, one blob
-- a row (`words`); in clear are ids, kinds, numbers, boxes and times. Times are unix milliseconds. Keys are
-- number of the dataset * 2^32 + position, as those of images: lists are ranges of them, and a place in a list
-- tells nothing of other customers.

-- test, real and the number of verifications as one number, so that lists by any of them are ranges of an index:
-- verifications * 4 + real * 2 + test; -1 once the image is being deleted.
ALTER TABLE images ADD COLUMN facet INTEGER NOT NULL DEFAULT 0 CHECK (facet >= -1);
ALTER TABLE datasets ADD COLUMN objects INTEGER NOT NULL DEFAULT 0 CHECK (objects >= 0);
UPDATE images SET facet = -1 WHERE deleted_at IS NOT NULL;

CREATE INDEX images_by_facet ON images (dataset, facet);

CREATE TABLE tasks (
    key        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    dataset    INTEGER NOT NULL REFERENCES datasets (number) ON DELETE CASCADE,
    kind       TEXT NOT NULL CHECK (kind IN ('multi_class', 'multi_label', 'regression', 'detection')),
    words      BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    labels     INTEGER NOT NULL DEFAULT 0 CHECK (labels >= 0),
    negatives  INTEGER NOT NULL DEFAULT 0 CHECK (negatives >= 0), -- images that show nothing of a detection task
    CHECK (key >> 32 = dataset)
) STRICT;

CREATE INDEX tasks_of_dataset ON tasks (dataset);

CREATE TABLE labels (
    key        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    dataset    INTEGER NOT NULL REFERENCES datasets (number) ON DELETE CASCADE,
    kind       TEXT NOT NULL CHECK (kind IN ('category', 'tag', 'detection')),
    words      BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    negative_for INTEGER REFERENCES tasks (key) ON DELETE SET NULL, -- of a tagging task: none of its tags
    tasks      INTEGER NOT NULL DEFAULT 0 CHECK (tasks >= 0),
    objects    INTEGER NOT NULL DEFAULT 0 CHECK (objects >= 0),
    deleted_at INTEGER,                           -- set first; then its rows and at last this one go
    wipes      INTEGER NOT NULL DEFAULT 0 CHECK (wipes IN (0, 1)), -- with it, its images
    CHECK (key >> 32 = dataset)
) STRICT;

CREATE INDEX labels_of_dataset ON labels (dataset);
CREATE INDEX labels_being_deleted ON labels (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX negative_labels ON labels (negative_for) WHERE negative_for IS NOT NULL;

CREATE TABLE task_labels (
    task  INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
    label INTEGER NOT NULL REFERENCES labels (key) ON DELETE CASCADE,
    PRIMARY KEY (task, label)
) STRICT, WITHOUT ROWID;

CREATE INDEX tasks_of_label ON task_labels (label);

-- Which recognition tasks are asked next where a label was given.
CREATE TABLE following_tasks (
    label INTEGER NOT NULL REFERENCES labels (key) ON DELETE CASCADE,
    task  INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
    PRIMARY KEY (label, task)
) STRICT, WITHOUT ROWID;

CREATE INDEX following_labels ON following_tasks (task);

CREATE TABLE negative_images (
    task  INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
    image INTEGER NOT NULL REFERENCES images (key) ON DELETE CASCADE,
    PRIMARY KEY (task, image)
) STRICT, WITHOUT ROWID;

CREATE INDEX negative_for_tasks ON negative_images (image);

-- For a detection label: how many of its objects are on the image, which has the label as long as one is.
CREATE TABLE image_labels (
    label   INTEGER NOT NULL REFERENCES labels (key) ON DELETE CASCADE,
    facet   INTEGER NOT NULL, -- the image's
    image   INTEGER NOT NULL REFERENCES images (key) ON DELETE CASCADE,
    value   REAL,
    objects INTEGER NOT NULL DEFAULT 0 CHECK (objects >= 0),
    PRIMARY KEY (label, facet, image)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX labels_of_image ON image_labels (image, label);

-- How many images there are of each facet: all of a dataset's, and those with a label.
CREATE TABLE dataset_counts (
    dataset INTEGER NOT NULL REFERENCES datasets (number) ON DELETE CASCADE,
    facet   INTEGER NOT NULL,
    images  INTEGER NOT NULL CHECK (images >= 0),
    PRIMARY KEY (dataset, facet)
) STRICT, WITHOUT ROWID;

CREATE TABLE label_counts (
    label  INTEGER NOT NULL REFERENCES labels (key) ON DELETE CASCADE,
    facet  INTEGER NOT NULL,
    images INTEGER NOT NULL CHECK (images >= 0),
    PRIMARY KEY (label, facet)
) STRICT, WITHOUT ROWID;

INSERT INTO dataset_counts SELECT dataset, facet, count(*) FROM images WHERE facet >= 0 GROUP BY dataset, facet;

CREATE TABLE objects (
    key        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    dataset    INTEGER NOT NULL REFERENCES datasets (number) ON DELETE CASCADE,
    image      INTEGER NOT NULL REFERENCES images (key) ON DELETE CASCADE,
    label      INTEGER NOT NULL REFERENCES labels (key) ON DELETE CASCADE,
    -- px of the upright image; ANY keeps whole numbers whole
    xmin       ANY NOT NULL,
    ymin       ANY NOT NULL,
    xmax       ANY NOT NULL CHECK (xmax > xmin),
    ymax       ANY NOT NULL CHECK (ymax > ymin),
    words      BLOB,
    created_at INTEGER NOT NULL,
    CHECK (key >> 32 = dataset)
) STRICT;

CREATE INDEX objects_of_dataset ON objects (dataset);
CREATE INDEX objects_of_image ON objects (image);
CREATE INDEX objects_of_label ON objects (label);

CREATE TABLE object_labels (
    label  INTEGER NOT NULL REFERENCES labels (key) ON DELETE CASCADE,
    object INTEGER NOT NULL REFERENCES objects (key) ON DELETE CASCADE,
    value  REAL,
    PRIMARY KEY (label, object)
) STRICT, WITHOUT ROWID;

CREATE INDEX labels_of_object ON object_labels (object);

CREATE TABLE verifications (
    key        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    image      INTEGER NOT NULL REFERENCES images (key) ON DELETE CASCADE,
    user       BLOB NOT NULL CHECK (length(user) = 32), -- keyed hash: a user verifies an image once
    words      BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (image, user)
) STRICT;

CREATE TABLE points (
    key        INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    dataset    INTEGER NOT NULL REFERENCES datasets (number) ON DELETE CASCADE,
    image      INTEGER REFERENCES images (key) ON DELETE CASCADE,
    words      BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    CHECK (key >> 32 = dataset)
) STRICT;

CREATE INDEX points_of_dataset ON points (dataset);
CREATE INDEX points_of_image ON points (image) WHERE image IS NOT NULL;

-- Counts follow their rows whatever adds or removes these, cascades included.

CREATE TRIGGER image_added AFTER INSERT ON images WHEN new.facet >= 0 BEGIN
    INSERT INTO dataset_counts VALUES (new.dataset, new.facet, 1)
        ON CONFLICT (dataset, facet) DO UPDATE SET images = images + 1;
END;

CREATE TRIGGER image_moved AFTER UPDATE OF facet ON images WHEN new.facet <> old.facet BEGIN
    UPDATE dataset_counts SET images = images - 1 WHERE dataset = old.dataset AND facet = old.facet;
    DELETE FROM dataset_counts WHERE dataset = old.dataset AND facet = old.facet AND images = 0;
    INSERT INTO dataset_counts SELECT new.dataset, new.facet, 1 WHERE new.facet >= 0
        ON CONFLICT (dataset, facet) DO UPDATE SET images = images + 1;
    UPDATE image_labels SET facet = new.facet WHERE image = new.key AND new.facet >= 0;
END;

CREATE TRIGGER image_removed AFTER DELETE ON images WHEN old.facet >= 0 BEGIN
    UPDATE dataset_counts SET images = images - 1 WHERE dataset = old.dataset AND facet = old.facet;
    DELETE FROM dataset_counts WHERE dataset = old.dataset AND facet = old.facet AND images = 0;
END;

-- With an image, what was written about it goes at once.
CREATE TRIGGER image_out_of_sight AFTER UPDATE OF facet ON images WHEN new.facet < 0 BEGIN
    DELETE FROM objects WHERE image = new.key;
    DELETE FROM image_labels WHERE image = new.key;
    DELETE FROM negative_images WHERE image = new.key;
    DELETE FROM verifications WHERE image = new.key;
    DELETE FROM points WHERE image = new.key;
END;

CREATE TRIGGER image_label_added AFTER INSERT ON image_labels BEGIN
    INSERT INTO label_counts VALUES (new.label, new.facet, 1)
        ON CONFLICT (label, facet) DO UPDATE SET images = images + 1;
END;

CREATE TRIGGER image_label_moved AFTER UPDATE OF facet ON image_labels WHEN new.facet <> old.facet BEGIN
    UPDATE label_counts SET images = images - 1 WHERE label = old.label AND facet = old.facet;
    DELETE FROM label_counts WHERE label = old.label AND facet = old.facet AND images = 0;
    INSERT INTO label_counts VALUES (new.label, new.facet, 1)
        ON CONFLICT (label, facet) DO UPDATE SET images = images + 1;
END;

CREATE TRIGGER image_label_removed AFTER DELETE ON image_labels BEGIN
    UPDATE label_counts SET images = images - 1 WHERE label = old.label AND facet = old.facet;
    DELETE FROM label_counts WHERE label = old.label AND facet = old.facet AND images = 0;
END;

CREATE TRIGGER task_label_added AFTER INSERT ON task_labels BEGIN
    UPDATE tasks SET labels = labels + 1 WHERE key = new.task;
    UPDATE labels SET tasks = tasks + 1 WHERE key = new.label;
END;

CREATE TRIGGER task_label_removed AFTER DELETE ON task_labels BEGIN
    UPDATE tasks SET labels = labels - 1 WHERE key = old.task;
    UPDATE labels SET tasks = tasks - 1 WHERE key = old.label;
END;

CREATE TRIGGER negative_image_added AFTER INSERT ON negative_images BEGIN
    UPDATE tasks SET negatives = negatives + 1 WHERE key = new.task;
END;

CREATE TRIGGER negative_image_removed AFTER DELETE ON negative_images BEGIN
    UPDATE tasks SET negatives = negatives - 1 WHERE key = old.task;
END;

CREATE TRIGGER object_added AFTER INSERT ON objects BEGIN
    UPDATE datasets SET objects = objects + 1 WHERE number = new.dataset;
    UPDATE labels SET objects = objects + 1 WHERE key = new.label;
    INSERT INTO image_labels (label, facet, image, objects)
        SELECT new.label, facet, key, 1 FROM images WHERE key = new.image
        ON CONFLICT (image, label) DO UPDATE SET objects = objects + 1;
END;

CREATE TRIGGER object_relabelled AFTER UPDATE OF label ON objects WHEN new.label <> old.label BEGIN
    UPDATE labels SET objects = objects - 1 WHERE key = old.label;
    UPDATE labels SET objects = objects + 1 WHERE key = new.label;
    UPDATE image_labels SET objects = objects - 1 WHERE image = old.image AND label = old.label;
    DELETE FROM image_labels WHERE image = old.image AND label = old.label AND objects = 0;
    INSERT INTO image_labels (label, facet, image, objects)
        SELECT new.label, facet, key, 1 FROM images WHERE key = new.image
        ON CONFLICT (image, label) DO UPDATE SET objects = objects + 1;
END;

CREATE TRIGGER object_removed AFTER DELETE ON objects BEGIN
    UPDATE datasets SET objects = objects - 1 WHERE number = old.dataset;
    UPDATE labels SET objects = objects - 1 WHERE key = old.label;
    UPDATE image_labels SET objects = objects - 1 WHERE image = old.image AND label = old.label;
    DELETE FROM image_labels WHERE image = old.image AND label = old.label AND objects = 0;
END;

CREATE TRIGGER object_label_added AFTER INSERT ON object_labels BEGIN
    UPDATE labels SET objects = objects + 1 WHERE key = new.label;
END;

CREATE TRIGGER object_label_removed AFTER DELETE ON object_labels BEGIN
    UPDATE labels SET objects = objects - 1 WHERE key = old.label;
END;

CREATE TRIGGER image_verified AFTER INSERT ON verifications BEGIN
    UPDATE images SET facet = facet + 4 WHERE key = new.image AND facet >= 0;
END;

CREATE TRIGGER image_unverified AFTER DELETE ON verifications BEGIN
    UPDATE images SET facet = facet - 4 WHERE key = old.image AND facet >= 4;
END;
