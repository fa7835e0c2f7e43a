"""How good the images are, in numbers."""
