"""What Shoal promises in figures, measured: ``python -m benchmarks`` writes docs/benchmarks.md."""
