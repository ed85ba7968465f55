"""What Perdure is measured with: `python -m benchmarks.run` (see README.md here) and the load test."""
