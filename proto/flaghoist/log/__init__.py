"""The only I/O of the protocol: an append-only log of opaque records, in a SQLite file or in Kafka.

Nothing that a log returns is trusted. Order, completeness and origin are proved by the records themselves.
"""
