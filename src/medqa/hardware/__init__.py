"""What the machine has, and what that means for dtype, attention and batch size."""
