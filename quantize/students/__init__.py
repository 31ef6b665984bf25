"""Small models in training. Needs torch; what they give needs none."""
