"""Extractive readers: a question and passages to the span that answers it."""
