"""Measures of how right, and how rightly confident, a multiple-choice model is. Torch-free."""
