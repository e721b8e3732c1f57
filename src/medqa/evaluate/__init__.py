"""Scoring questions and reporting how well it went."""
