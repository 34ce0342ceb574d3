"""What a verified ledger tells about itself: every entry's people, changes and signatures, and what is wrong with it.

Pure: bytes and verified entries in, facts out; publisher/cli/audit reads and prints.
"""
