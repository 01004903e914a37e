-- Installed bundles. Their files lie in STATE/bundles/NAME@VERSION; a folder there without a row is a left-over.

CREATE TABLE bundles (
    number       INTEGER PRIMARY KEY AUTOINCREMENT, -- order of installation: of two that serve a route, the first
    name         TEXT NOT NULL,
    version      TEXT NOT NULL,
    task         TEXT NOT NULL UNIQUE,              -- the id by which clients ask for it
    manifest     BLOB NOT NULL CHECK (length(manifest) = 32), -- SHA-256 of bundle.toml, which has all others
    installed_at INTEGER NOT NULL,                  -- unix milliseconds
    UNIQUE (name, version)
) STRICT;
