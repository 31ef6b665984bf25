"""A question to passages: the full-text query, the fusion of rankings, the search itself."""
