"""What a backbone learned: transfer and bias benchmarks, their statistics, and the report."""
