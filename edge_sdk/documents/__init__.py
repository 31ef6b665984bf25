"""Files, folders and Python modules to plain text, and text to passages."""
