"""How likely an answer is to be right, and what that lets one promise."""
