"""The mathematics of diffusion: no network, no input or output."""
