"""What docs/performance.md reports: ratios of our parts to bare ones, measured in one run. `make bench`."""
