"""What version 3 of a store adds: labels, and what there is to know of questions that a remote model may answer.

A published step of the schema is never edited: what is to be changed is changed by the next one. The statements
that use these tables stand in the modules that own them. All times are seconds since 1970, UTC.
"""

from __future__ import annotations

TABLES = (
    # May its text leave the device? "" says nothing, and a passage that says nothing is what its document is.
    "ALTER TABLE documents ADD COLUMN label TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE passages ADD COLUMN label TEXT NOT NULL DEFAULT ''",
    # How a question was routed, and why. The question itself is not kept: only a hash under a key of this store.
    """CREATE TABLE decisions (
        id TEXT PRIMARY KEY,
        made_at REAL NOT NULL,
        question_hash TEXT NOT NULL,
        route TEXT NOT NULL,
        record TEXT NOT NULL
    )""",
    "INSERT INTO meta (key, value) VALUES ('question_key', lower(hex(randomblob(32))))",
    # One row a remote call, written before it. Money in millionths of the user's currency; no text of any kind.
    """CREATE TABLE spend (
        id TEXT PRIMARY KEY,
        remote TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'released', 'unknown')),
        reserved_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        closed_at REAL,
        reserved_micro INTEGER NOT NULL,
        reserved_prompt_tokens INTEGER NOT NULL,
        reserved_completion_tokens INTEGER NOT NULL,
        actual_micro INTEGER,
        actual_prompt_tokens INTEGER,
        actual_completion_tokens INTEGER,
        payload_sha256 TEXT NOT NULL,
        entities TEXT NOT NULL,
        characters TEXT NOT NULL,
        outcome TEXT NOT NULL DEFAULT ''
    )""",
    "CREATE INDEX spend_by_time ON spend (reserved_at)",
    # Whether a remote that has failed is left alone; in the file, so that the next process knows.
    """CREATE TABLE breakers (
        remote TEXT PRIMARY KEY,
        failures INTEGER NOT NULL,
        retry_at REAL NOT NULL
    ) WITHOUT ROWID""",
    # Questions for later. What is to be sent has been redacted before it comes here.
    """CREATE TABLE outbox (
        id TEXT PRIMARY KEY,
        created_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        payload TEXT NOT NULL,
        idempotency_key TEXT NOT NULL UNIQUE,
        policy TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        next_try_at REAL NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('queued', 'sending', 'answered', 'failed', 'unknown', 'expired')),
        result TEXT NOT NULL DEFAULT ''
    )""",
    # A remote's answers that may be served again. The question's vector is `codes` (int8) times `scale`.
    """CREATE TABLE learned_answers (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        question TEXT NOT NULL,
        codes BLOB NOT NULL,
        scale REAL NOT NULL,
        encoder TEXT NOT NULL,
        answer TEXT NOT NULL,
        provenance TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('quarantine', 'accepted', 'rejected', 'expired')),
        created_at REAL NOT NULL,
        expires_at REAL NOT NULL,
        uses INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX learned_answers_by_state ON learned_answers (state, encoder)",
)
