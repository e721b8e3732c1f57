"""Base models, adapters, and questions as tensors."""
