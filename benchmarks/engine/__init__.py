"""What the benchmarks of the inference engine share."""
