"""Large models that small ones learn from: asked once, kept, never asked again."""
