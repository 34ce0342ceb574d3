"""Signers whose private key this program never sees: an SSH agent's, an HSM's, a cloud KMS's.

Which for whom, and how each is set up: docs/signers.md. Keys in files are in publisher/keys.py.
"""
