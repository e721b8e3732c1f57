"""Answering questions with a tuned model."""
