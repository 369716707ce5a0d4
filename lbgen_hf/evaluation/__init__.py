"""What a backbone learned, and what a dataset teaches: benchmarks, bias, statistics, the report, audits."""
