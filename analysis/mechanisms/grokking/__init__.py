"""Networks that learn modular addition: Fourier structure, progress measures, and structure at several scales."""
