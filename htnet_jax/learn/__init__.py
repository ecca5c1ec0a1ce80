"""One training step, which the trainer, the parity check and the benchmark all run."""
