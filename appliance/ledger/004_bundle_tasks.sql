-- A task is a name: all versions of a bundle share it, and one of them answers.

CREATE TABLE bundle_tasks (
    name   TEXT PRIMARY KEY,
    task   TEXT NOT NULL UNIQUE, -- the id by which clients ask for it
    active TEXT NOT NULL         -- the version that answers where none is asked for
) STRICT;

INSERT INTO bundle_tasks (name, task, active)
    SELECT name, task, version FROM bundles AS first
    WHERE number = (SELECT min(number) FROM bundles WHERE name = first.name);

CREATE TABLE bundle_versions (
    number       INTEGER PRIMARY KEY AUTOINCREMENT, -- order of installation: of two that serve a route, the first
    name         TEXT NOT NULL REFERENCES bundle_tasks (name),
    version      TEXT NOT NULL,
    manifest     BLOB NOT NULL CHECK (length(manifest) = 32), -- SHA-256 of bundle.toml, which has all others
    installed_at INTEGER NOT NULL,                  -- unix milliseconds
    UNIQUE (name, version)
) STRICT;

INSERT INTO bundle_versions (number, name, version, manifest, installed_at)
    SELECT number, name, version, manifest, installed_at FROM bundles;
DROP TABLE bundles;
ALTER TABLE bundle_versions RENAME TO bundles;
