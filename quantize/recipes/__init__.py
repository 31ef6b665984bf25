"""Recipes: from documents and a teacher to a bundle, stage by stage."""
