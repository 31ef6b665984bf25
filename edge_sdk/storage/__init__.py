"""One SQLite file: documents, full text and vectors, checked, and the vectors' search in memory."""
