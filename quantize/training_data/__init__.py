"""Questions with answers to learn from: read or generated, checked, chosen."""
