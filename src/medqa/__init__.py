"""Fine-tune a small language model on clinical multiple-choice questions.

The model gives a letter, a reason and a confidence. The command line is `medqa`.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
