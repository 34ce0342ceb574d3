"""The Flaghoist protocol: what publisher and sidecar must agree on, and nothing else."""

__version__ = "0.1.0"
