"""The sidecar's public faces: each turns one protocol's calls into evaluations, and answers into that protocol."""
