"""kvferry for Python: the local API of the agent beside an engine.

Words: a *namespace* says how blocks look, a *region* is registered memory cut into *slots*, a *block* is what lies in a
sealed slot under its *hash*. Nothing here copies a block's bytes except `Client.put`.

Every call waits for at most its timeout, without the GIL. Times are seconds (float); sizes are bytes. Failures are exceptions
of `kvferry.errors` (all also here), one class for each thing a caller can do next; their text names the agent or peer, the
block or region, and the cause. An outage is never a miss.

Three ways to call, with the same names and arguments:

* `Client.lookup(...)`: waits, gives the answer.
* `Client.background.lookup(...)`: returns a `Call` at once: `done()`, `result(timeout)`, `add_done_callback(fn)`,
  `fileno()` for event loops, `await`. For schedulers that must never block.
* `kvferry.aio.AsyncClient.lookup(...)`: a coroutine.
"""

from . import aio, errors
from ._call import Call, Pull
from ._client import Background, Client, connect
from ._memory import SharedMemory, share_in_place
from ._native import __version__
from ._processes import Agent, Coordinator, binary
from ._regions import Pin, Region, Reservation
from ._words import (
    Checksum,
    Claim,
    ClaimPurpose,
    ClaimState,
    CoordinatorLink,
    Evicted,
    Geometry,
    Hashes,
    Kind,
    Layout,
    Namespace,
    Outcome,
    PackedHashes,
    PinnedBlock,
    Place,
    Plane,
    PullResult,
    PutResult,
    RegionStats,
    Sealed,
    Stats,
)
from .errors import *  # noqa: F403
from .errors import __all__ as _errors

__all__ = [
    "Agent",
    "Background",
    "Call",
    "Checksum",
    "Claim",
    "ClaimPurpose",
    "ClaimState",
    "Client",
    "Coordinator",
    "CoordinatorLink",
    "Evicted",
    "Geometry",
    "Hashes",
    "Kind",
    "Layout",
    "Namespace",
    "Outcome",
    "PackedHashes",
    "Pin",
    "PinnedBlock",
    "Place",
    "Plane",
    "Pull",
    "PullResult",
    "PutResult",
    "Region",
    "RegionStats",
    "Reservation",
    "Sealed",
    "SharedMemory",
    "Stats",
    "__version__",
    "aio",
    "binary",
    "connect",
    "errors",
    "share_in_place",
    *_errors,
]
