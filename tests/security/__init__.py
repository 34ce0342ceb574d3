"""What somebody who owns the log, or a key, can do, against the real programs; and how people recover."""
