"""PyTorch's checkpoint files, read with NumPy alone."""
