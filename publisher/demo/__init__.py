"""`flaghoist demo`: the whole story on a ledger of its own, with real commands, a real sidecar and real clients."""

from publisher.demo.story import demo as demo
