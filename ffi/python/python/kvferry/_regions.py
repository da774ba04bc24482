"""Registered memory, and blocks that are kept in it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._words import Hashes, PinnedBlock, Plane, Sealed
from .errors import BlockMissingError, InvalidArgumentError, PinUnknownError, SlotNotReservedError

if TYPE_CHECKING:
    from typing_extensions import Self

    from ._client import Client


class Region:
    """Registered memory. A region of an engine's memory ends with the client that registered it unless kept; a pool
    stays."""

    __slots__ = (
        "client",
        "id",
        "namespace",
        "fingerprint",
        "slots",
        "planes",
        "pool",
        "incarnation",
        "device_uuid",
        "_owner",
    )

    def __init__(self, client: Client, told: tuple, owner: Any = None) -> None:
        self.client = client
        (self.id, self.namespace, self.fingerprint, self.slots, planes, self.pool, self.incarnation, self.device_uuid) = told
        self.planes = tuple(Plane(*plane) for plane in planes)
        self._owner = owner  # the engine's buffer, so that it stays as long as this object does

    def reserve(self, slots: Sequence[int] | int) -> list[int]:
        """As `Client.reserve`."""
        return self.client.reserve(self.id, slots)

    def seal(
        self,
        slots: Sequence[int],
        hashes: Hashes,
        *,
        chained: bool = False,
        parent: bytes | None = None,
        wait_announced: float = 0.0,
    ) -> Sealed:
        """As `Client.seal`."""
        return self.client.seal(
            self.id, slots, hashes, chained=chained, parent=parent, wait_announced=wait_announced
        )

    def abort(self, slots: Sequence[int]) -> None:
        """As `Client.abort`."""
        self.client.abort(self.id, slots)

    def unregister(self) -> int:
        """As `Client.unregister`."""
        return self.client.unregister(self.id)

    def write(self, slots: Sequence[int] | int) -> Reservation:
        """Reserves slots of a pool and maps them for writing:
        `with pool.write(2) as r: r.view(0)[:] = data; ...; r.seal(hashes)`."""
        mapping = _mapped(self.client, self, writable=True)
        return Reservation(self, tuple(self.reserve(slots)), mapping)

    def __repr__(self) -> str:
        kind = "pool" if self.pool else "region"
        return f"<kvferry {kind} {self.id} of {self.namespace!r}: {self.slots} slots>"


def _mapped(client: Client, region: Region, writable: bool) -> Any:
    """A region's mapping: made once for each kind of access."""
    if len(region.planes) != 1:
        raise InvalidArgumentError(
            f"region {region.id} has {len(region.planes)} planes: its blocks are not one run of bytes; read them in the "
            "engine's own memory"
        )
    return client._mapping(region.id, writable)


class _Views:
    """Windows into a mapping that end together."""

    def __init__(self, mapping: Any, plane: Plane) -> None:
        self._mapping = mapping
        self._plane = plane
        self._given: dict[int, tuple[Any, memoryview]] = {}

    def view(self, index: int, slot: int) -> memoryview:
        given = self._given.get(index)
        if given is None:
            plane = self._plane
            window = self._mapping.window(plane.base + slot * plane.stride, plane.len)
            given = self._given[index] = (window, memoryview(window))
        return given[1]

    def end(self) -> None:
        """All of them, or, with BufferError, none."""
        used = []
        for index, (window, view) in list(self._given.items()):
            try:
                view.release()
            except BufferError:
                used.append(index)
                continue
            if window.close():
                del self._given[index]
            else:
                used.append(index)
                self._given[index] = (window, memoryview(window))
        if used:
            raise BufferError(f"the views of blocks {used} are still in use (by numpy arrays, or slices of them)")


class Reservation:
    """Reserved slots of a pool as writable memory. Given back unsealed by `abort`, or at the end of `with`."""

    def __init__(self, region: Region, slots: tuple[int, ...], mapping: Any) -> None:
        self.region = region
        self.slots = slots
        self._views = _Views(mapping, region.planes[0])
        self._held = True

    def view(self, index: int) -> memoryview:
        """The bytes of the index-th slot, writable, until `seal` or `abort`."""
        if not self._held:
            raise SlotNotReservedError(f"the slots of {self.region!r} are not reserved any more")
        return self._views.view(index, self.slots[index])

    def seal(
        self,
        hashes: Hashes,
        *,
        chained: bool = False,
        parent: bytes | None = None,
        wait_announced: float = 0.0,
    ) -> Sealed:
        """As `Client.seal`. Ends the views first; BufferError where something still uses one."""
        if not self._held:
            raise SlotNotReservedError(f"the slots of {self.region!r} are not reserved any more")
        self._views.end()
        sealed = self.region.seal(
            self.slots, hashes, chained=chained, parent=parent, wait_announced=wait_announced
        )
        self._held = False
        return sealed

    def abort(self) -> None:
        """Gives the slots back. Twice is nothing."""
        if self._held:
            self._views.end()
            self._held = False
            self.region.abort(self.slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


class Pin:
    """A promise that these slots are not reused: until `release` or until its time is over (`ttl` seconds)."""

    def __init__(self, client: Client, token: int, blocks: tuple[PinnedBlock | None, ...], ttl: float) -> None:
        self.client = client
        self.token = token
        self.blocks = blocks
        self.ttl = ttl
        self._views: dict[int, _Views] = {}
        self._released = False

    def view(self, index: int) -> memoryview:
        """Block `index`'s bytes in the agent's pool, read-only, without a copy (numpy.frombuffer and torch.frombuffer take
        it). BlockMissingError where it is not here, PinUnknownError after the pin's end. Blocks in GPU memory, or of several
        planes, have no view."""
        if self._released:
            raise PinUnknownError(f"pin {self.token:#x} of agent {self.client.node} was released")
        block = self.blocks[index]
        if block is None:
            raise BlockMissingError(f"block {index} is not on agent {self.client.node}")
        views = self._views.get(block.region)
        if views is None:
            region = self.client._region(block.region)
            views = self._views[block.region] = _Views(_mapped(self.client, region, False), region.planes[0])
        return views.view(index, block.slot)

    def valid(self) -> bool:
        """Whether every pinned slot still has its generation: what was read from views before this said True is right,
        also where the pin's time was over."""
        by_region: dict[int, list[PinnedBlock]] = {}
        for block in self.blocks:
            if block is not None:
                by_region.setdefault(block.region, []).append(block)
        for region, blocks in by_region.items():
            generations = self.client._mapping(region, False).generations([it.slot for it in blocks])
            if generations != [it.generation for it in blocks]:
                return False
        return True

    def release(self) -> None:
        """Ends it, and its views: reading them raises ValueError from then on. BufferError, and nothing is released, while
        something else (a numpy array) still uses one. Twice is nothing; so is one whose time is over."""
        if self._released:
            return
        for views in self._views.values():
            views.end()
        self._released = True
        if self.token == 0:
            return  # Of no blocks.
        try:
            self.client.release(self.token)
        except PinUnknownError:
            pass  # Its time was over.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __len__(self) -> int:
        return len(self.blocks)

    def __repr__(self) -> str:
        return f"<kvferry pin {self.token:#x} of {len(self.blocks)} blocks on {self.client.node}>"
