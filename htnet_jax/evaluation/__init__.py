"""Predictions on disk, protocols, metrics and reports. NumPy only: no JAX, no accelerator."""
