"""For asyncio: `kvferry.Client`'s calls as coroutines. No thread waits for them; a cancelled task gives its call up.

    async with await kvferry.aio.connect(socket) as client:
        places = await client.lookup("team/llama", hashes)
        pull = client.pull("team/llama", hashes)
        async for outcome in pull:
            ...
        result = await pull
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._call import Pull
from ._client import Client
from ._client import connect as _connect
from ._regions import Pin, Region
from ._words import (
    Claim,
    ClaimPurpose,
    Evicted,
    Geometry,
    Hashes,
    Namespace,
    Place,
    PutResult,
    Sealed,
    Stats,
)

if TYPE_CHECKING:
    from typing_extensions import Self


async def connect(
    socket: str | os.PathLike[str] | None = None,
    *,
    descriptor_socket: str | None = None,
    connect_timeout: float = 5.0,
    call_timeout: float = 5.0,
) -> AsyncClient:
    """As `kvferry.connect`."""
    client = await asyncio.to_thread(
        _connect,
        socket,
        descriptor_socket=descriptor_socket,
        connect_timeout=connect_timeout,
        call_timeout=call_timeout,
    )
    return AsyncClient(client)


class AsyncClient:
    """A `Client` whose calls are coroutines. `sync` is the client itself, over the same connection."""

    def __init__(self, client: Client) -> None:
        self.sync = client
        self._calls = client.background

    @property
    def node(self) -> str:
        """The agent's name."""
        return self.sync.node

    @property
    def incarnation(self) -> int:
        """The agent's lifetime."""
        return self.sync.incarnation

    def close(self) -> None:
        """As `Client.close`; waits for nothing."""
        self.sync.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def register_pool(
        self, namespace: Namespace, nbytes: int = 0, *, hugepages: bool = False, exist_ok: bool = True
    ) -> Region:
        """As `Client.register_pool`."""
        return await asyncio.to_thread(
            self.sync.register_pool, namespace, nbytes, hugepages=hugepages, exist_ok=exist_ok
        )

    async def register_path(
        self, namespace: Namespace, path: str | os.PathLike[str], geometry: Geometry, *, keep: bool = False
    ) -> Region:
        """As `Client.register_path`."""
        return await self._calls.register_path(namespace, path, geometry, keep=keep)

    async def register_fd(
        self, namespace: Namespace, fd: int, geometry: Geometry, *, keep: bool = False
    ) -> Region:
        """As `Client.register_fd`."""
        return await self._calls.register_fd(namespace, fd, geometry, keep=keep)

    async def register_buffer(
        self, namespace: Namespace, buffer: Any, geometry: Geometry, *, keep: bool = False
    ) -> Region:
        """As `Client.register_buffer`."""
        return await self._calls.register_buffer(namespace, buffer, geometry, keep=keep)

    async def register_cuda(self, namespace: Namespace, tensor: Any, geometry: Geometry) -> Region:
        """As `Client.register_cuda`."""
        return await self._calls.register_cuda(namespace, tensor, geometry)

    async def register_cuda_ipc(
        self,
        namespace: Namespace,
        *,
        device_uuid: str,
        handle: bytes,
        offset: int,
        nbytes: int,
        geometry: Geometry,
    ) -> Region:
        """As `Client.register_cuda_ipc`."""
        return await self._calls.register_cuda_ipc(
            namespace, device_uuid=device_uuid, handle=handle, offset=offset, nbytes=nbytes, geometry=geometry
        )

    async def region(self, id: int) -> Region:
        """As `Client.region`."""
        return await self._calls.region(id)

    async def unregister(self, region: int | Region) -> int:
        """As `Client.unregister`."""
        return await self._calls.unregister(region)

    async def reserve(self, region: int | Region, slots: Sequence[int] | int) -> list[int]:
        """As `Client.reserve`."""
        return await self._calls.reserve(region, slots)

    async def seal(
        self,
        region: int | Region,
        slots: Sequence[int],
        hashes: Hashes,
        *,
        chained: bool = False,
        parent: bytes | None = None,
        wait_announced: float = 0.0,
    ) -> Sealed:
        """As `Client.seal`."""
        return await self._calls.seal(
            region, slots, hashes, chained=chained, parent=parent, wait_announced=wait_announced
        )

    async def abort(self, region: int | Region, slots: Sequence[int]) -> None:
        """As `Client.abort`."""
        await self._calls.abort(region, slots)

    async def put(
        self,
        namespace: str | Namespace,
        hashes: Hashes,
        data: Any,
        *,
        chained: bool = False,
        parent: bytes | None = None,
        timeout: float = 30.0,
        wait_announced: float = 0.0,
    ) -> PutResult:
        """As `Client.put`. The data must not change before it has ended."""
        return await self._calls.put(
            namespace,
            hashes,
            data,
            chained=chained,
            parent=parent,
            timeout=timeout,
            wait_announced=wait_announced,
        )

    async def lookup(
        self, namespace: str | Namespace, hashes: Hashes, *, prefix: bool = False, timeout: float = 2.0
    ) -> list[Place]:
        """As `Client.lookup`."""
        return await self._calls.lookup(namespace, hashes, prefix=prefix, timeout=timeout)

    def pull(
        self,
        namespace: str | Namespace,
        hashes: Hashes,
        *,
        region: int | Region | None = None,
        slots: Sequence[int] | None = None,
        timeout: float = 10.0,
        pin_ttl: float = 30.0,
        replica: bool = True,
        chained: bool = False,
        parent: bytes | None = None,
        stages: Sequence[int] = (),
    ) -> Pull:
        """As `Client.pull`: `await` it for its result, or go through its outcomes with `async for`."""
        return self.sync.pull(
            namespace,
            hashes,
            region=region,
            slots=slots,
            timeout=timeout,
            pin_ttl=pin_ttl,
            replica=replica,
            chained=chained,
            parent=parent,
            stages=stages,
        )

    async def pin(self, namespace: str | Namespace, hashes: Hashes, *, ttl: float = 30.0) -> Pin:
        """As `Client.pin`."""
        return await self._calls.pin(namespace, hashes, ttl=ttl)

    async def release(self, pin: int | Pin) -> None:
        """As `Client.release`."""
        await self._calls.release(pin)

    async def evict(self, namespace: str | Namespace, hashes: Hashes | None = None) -> Evicted:
        """As `Client.evict`."""
        return await self._calls.evict(namespace, hashes)

    async def claim(
        self,
        namespace: str | Namespace,
        hashes: Hashes,
        *,
        ttl: float = 30.0,
        keep: bool = False,
        purpose: ClaimPurpose = ClaimPurpose.PRODUCE,
    ) -> Claim:
        """As `Client.claim`."""
        return await self._calls.claim(namespace, hashes, ttl=ttl, keep=keep, purpose=purpose)

    async def renew_claims(self, token: int, *, ttl: float = 30.0) -> int:
        """As `Client.renew_claims`."""
        return await self._calls.renew_claims(token, ttl=ttl)

    async def release_claims(self, token: int, hashes: Hashes | None = None) -> int:
        """As `Client.release_claims`."""
        return await self._calls.release_claims(token, hashes)

    async def stats(self) -> Stats:
        """As `Client.stats`."""
        return await self._calls.stats()
