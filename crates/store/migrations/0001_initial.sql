-- Columns that are searched come before the body, so that reading them never touches a long row's overflow pages.
CREATE TABLE records (
    num        INTEGER PRIMARY KEY,
    kind       TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    parent     TEXT,
    created_at INTEGER NOT NULL,
    archived   INTEGER NOT NULL,
    status     TEXT,
    due_at     INTEGER,
    labels     TEXT,
    body       TEXT    NOT NULL,
    UNIQUE (kind, id)
) STRICT;
CREATE INDEX records_by_creation ON records (kind, created_at, id);
CREATE INDEX records_by_parent ON records (kind, parent, created_at, id) WHERE parent IS NOT NULL;
CREATE INDEX records_by_due ON records (kind, due_at, created_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX records_by_status_due ON records (kind, status, due_at, created_at, id) WHERE due_at IS NOT NULL;

-- One row per label; created_at is the record's, so that a list by label comes in order.
CREATE TABLE labels (
    kind       TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    value      TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    id         TEXT    NOT NULL,
    PRIMARY KEY (kind, name, value, created_at, id)
) STRICT, WITHOUT ROWID;

-- What is known of a session's log: its number in the tables below, its tail, the epoch of its lease.
CREATE TABLE session_logs (
    num     INTEGER PRIMARY KEY,
    session TEXT    NOT NULL UNIQUE,
    tail    INTEGER NOT NULL,
    epoch   INTEGER NOT NULL
) STRICT;

-- Rows go to the end of the table whatever their session: appending is what this store does most.
CREATE TABLE events (
    num     INTEGER PRIMARY KEY,
    log     INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    id      TEXT    NOT NULL,
    kind    TEXT    NOT NULL,
    at      INTEGER NOT NULL,
    body    TEXT    NOT NULL,
    private TEXT,
    UNIQUE (log, seq),
    UNIQUE (log, id)
) STRICT;

-- In order of arrival by num.
CREATE TABLE pending_events (
    num  INTEGER PRIMARY KEY,
    log  INTEGER NOT NULL,
    id   TEXT    NOT NULL,
    at   INTEGER NOT NULL,
    body TEXT    NOT NULL,
    UNIQUE (log, id)
) STRICT;

-- Written to find out whether a write can be made durable.
CREATE TABLE probe (
    num   INTEGER PRIMARY KEY CHECK (num = 1),
    ticks INTEGER NOT NULL,
    room  BLOB
) STRICT;
INSERT INTO probe (num, ticks) VALUES (1, 0);
