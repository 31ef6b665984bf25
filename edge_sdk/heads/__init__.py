"""Small classifiers of short texts: which of the known requests a text is, if any, and why."""
