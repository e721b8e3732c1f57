"""Questions: where they come from, how they are cleaned, which are used. Torch-free."""
