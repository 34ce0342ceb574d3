"""A service as users write it: the stock OpenFeature SDK with flagd's provider, and nothing of Flaghoist.

Prints one JSON line with the flag's value at the start and at each change, until SIGTERM.

Variables: SERVICE and FLAG name this service and the boolean flag that it asks for; FLAGD_HOST and FLAGD_PORT are the
provider's own.
"""

import json
import os
import signal
import sys
import threading

from openfeature import api
from openfeature.contrib.provider.flagd import FlagdProvider
from openfeature.event import ProviderEvent


def main() -> int:
    """Return the exit code: 0 when told to stop."""
    service, flag = os.environ["SERVICE"], os.environ["FLAG"]
    stop, changed = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: (stop.set(), changed.set()))
    api.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, lambda _: changed.set())
    api.add_handler(ProviderEvent.PROVIDER_READY, lambda _: changed.set())
    api.set_provider_and_wait(FlagdProvider())
    client = api.get_client()
    said: dict[str, object] = {}
    changed.set()
    while not stop.is_set():
        changed.wait()
        changed.clear()
        details = client.get_boolean_details(flag, False)
        found = {"service": service, "flag": flag, "value": details.value, "error": details.error_code}
        if found != said and not stop.is_set():
            said = found
            print(json.dumps(found), flush=True)  # noqa: T201 — what it is for
    api.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
