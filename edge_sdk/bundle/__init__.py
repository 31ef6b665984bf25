"""All files of an assistant as one thing: what they are, that nothing in them was changed, and who says so."""
