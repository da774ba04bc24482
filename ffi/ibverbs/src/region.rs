//! Registered memory: what a device may read or write.
//!
//! Two types, so that neither right comes by accident with the other: a [`ReadableRegion`] can be read
//! by peers, a [`LocalRegion`] is where our own READs put their bytes. No region can ever be written
//! by a peer. Memory that serves both ends is registered twice.

use std::{
    any::Any,
    fmt, io,
    ops::Range,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::Arc,
};

use kvferry_memory::HostMemory;
use kvferry_rdma_sys::{ibv_access_flags, ibv_mr};

use crate::{MemlockLimit, ProtectionDomain, RegisterError};

/// Memory that devices may be told of.
///
/// # Safety
/// As long as the value lives, `as_raw_parts` gives the same mapped bytes, and no reference to any of
/// them exists: a device may read and write them at any time.
pub unsafe trait DeviceMemory: Send + Sync + 'static {
    /// Where it begins and how many bytes it has.
    fn as_raw_parts(&self) -> (*mut u8, usize);
}

// SAFETY: the mapping lives as long as the HostMemory, and HostMemory never makes references to its bytes
// but atomic ones to single words.
unsafe impl DeviceMemory for HostMemory {
    fn as_raw_parts(&self) -> (*mut u8, usize) {
        self.as_raw_parts()
    }
}

/// How to register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RegisterOptions {
    /// The bus may reorder the device's writes among each other until the completion. Faster on some
    /// machines, and right here: nobody looks at the bytes before the completion. Devices and libraries that do not
    /// know it go on as without.
    pub relaxed_ordering: bool,
}

/// What lies behind a registration.
pub(crate) struct Registration {
    raw: NonNull<ibv_mr>,
    domain: Arc<ProtectionDomain>,
    address: u64,
    len: u64,
    lkey: u32,
    rkey: u32,
    /// Outlives the registration: fields are dropped after `drop` has run.
    _memory: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the registration is only read, and libibverbs' calls on it may come from any thread.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

impl Registration {
    pub(crate) fn of_memory<M: DeviceMemory>(
        domain: &Arc<ProtectionDomain>,
        memory: &Arc<M>,
        range: Range<u64>,
        access: ibv_access_flags,
        options: RegisterOptions,
    ) -> Result<Self, RegisterError> {
        let context = domain.context();
        let (base, size) = memory.as_raw_parts();
        let (offset, len) = checked(&range, size as u64)?;
        let most = context.attributes().max_region_bytes;
        if len as u64 > most {
            return Err(RegisterError::TooLarge {
                device: context.name().into(),
                bytes: len as u64,
                most,
            });
        }
        let start = base.wrapping_add(offset);
        let raw = if options.relaxed_ordering && context.verbs.ibv_reg_mr_iova2.is_ok() {
            let access = access | ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING;
            // SAFETY: the range is inside the memory, which the registration keeps alive; the trait
            // promises that it stays mapped and that no reference to it exists. This call drops
            // optional flags that the kernel does not know.
            unsafe {
                context.verbs.ibv_reg_mr_iova2(
                    domain.raw(),
                    start.cast(),
                    len,
                    start as u64,
                    access.0,
                )
            }
        } else {
            // SAFETY: as above.
            unsafe {
                context
                    .verbs
                    .ibv_reg_mr(domain.raw(), start.cast(), len, access.0 as i32)
            }
        };
        let raw = NonNull::new(raw).ok_or_else(|| {
            RegisterError::from_os(
                context.name(),
                len as u64,
                io::Error::last_os_error(),
                MemlockLimit::now(),
            )
        })?;
        Ok(Self::new(raw, domain, start as u64, len, memory.clone()))
    }

    pub(crate) fn of_dmabuf(
        domain: &Arc<ProtectionDomain>,
        buffer: &DmaBuf<'_>,
        access: ibv_access_flags,
    ) -> Result<Self, RegisterError> {
        let context = domain.context();
        let device = || context.name().to_owned();
        if context.verbs.ibv_reg_dmabuf_mr.is_err() {
            return Err(RegisterError::NoDmaBuf { device: device() });
        }
        let len = usize::try_from(buffer.len).map_err(|_| RegisterError::Empty)?;
        if len == 0 {
            return Err(RegisterError::Empty);
        }
        // SAFETY: the kernel checks the descriptor and the range in it, and holds a reference to the
        // buffer as long as the registration lives; no memory of this process is touched.
        let raw = unsafe {
            context.verbs.ibv_reg_dmabuf_mr(
                domain.raw(),
                buffer.offset,
                len,
                buffer.address,
                buffer.fd.as_raw_fd(),
                access.0 as i32,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| RegisterError::DmaBufRefused {
            device: device(),
            bytes: buffer.len,
            source: io::Error::last_os_error(),
        })?;
        let owner = Arc::clone(&buffer.owner);
        Ok(Self::new(raw, domain, buffer.address, len, owner))
    }

    fn new(
        raw: NonNull<ibv_mr>,
        domain: &Arc<ProtectionDomain>,
        address: u64,
        len: usize,
        memory: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        // SAFETY: the library just gave this registration, and it is never written to.
        let (lkey, rkey) = unsafe { (raw.as_ref().lkey, raw.as_ref().rkey) };
        Self {
            raw,
            domain: Arc::clone(domain),
            address,
            len: len as u64,
            lkey,
            rkey,
            _memory: memory,
        }
    }

    pub(crate) fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let verbs = self.domain.context().verbs;
        // SAFETY: the registration came from the library and is given back once. No work request of
        // ours names it: those in flight hold an `Arc` of it.
        if unsafe { verbs.ibv_dereg_mr(self.raw.as_ptr()) } != 0 {
            // The device may go on using the memory: it must never be given to anyone else.
            crate::leak::keep_for_ever(Arc::clone(&self._memory));
            crate::leak::keep_for_ever(Arc::clone(&self.domain));
        }
    }
}

fn checked(range: &Range<u64>, size: u64) -> Result<(usize, usize), RegisterError> {
    if range.is_empty() {
        return Err(RegisterError::Empty);
    }
    if range.end > size {
        return Err(RegisterError::OutOfRange {
            offset: range.start,
            bytes: range.end - range.start,
            memory: size,
        });
    }
    // Within a mapping, so both fit.
    Ok((range.start as usize, (range.end - range.start) as usize))
}

/// Device memory behind a dma-buf descriptor.
pub struct DmaBuf<'a> {
    /// The descriptor; needed only during the call.
    pub fd: BorrowedFd<'a>,
    /// First byte of the buffer to register.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// The address by which the first byte is to be named: for GPU memory its device pointer.
    pub address: u64,
    /// Kept as long as the registration: whatever owns the memory.
    pub owner: Arc<dyn Any + Send + Sync>,
}

/// What a peer must know to read from a region. It is told to peers that were let in, and to nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RemoteKey {
    /// The region's first byte.
    pub address: u64,
    /// Bytes there are.
    pub len: u64,
    /// The right to read them.
    pub rkey: u32,
}

/// Memory that peers may read, and not write.
pub struct ReadableRegion(pub(crate) Registration);

impl ReadableRegion {
    const ACCESS: ibv_access_flags = ibv_access_flags::IBV_ACCESS_REMOTE_READ;

    /// Lets peers read a range of host memory.
    ///
    /// # Errors
    /// [`RegisterError`]; [`RegisterError::MemoryLock`] says what to set.
    pub fn register<M: DeviceMemory>(
        domain: &Arc<ProtectionDomain>,
        memory: &Arc<M>,
        range: Range<u64>,
        options: RegisterOptions,
    ) -> Result<Arc<Self>, RegisterError> {
        Registration::of_memory(domain, memory, range, Self::ACCESS, options)
            .map(|registration| Arc::new(Self(registration)))
    }

    /// Lets peers read device memory.
    ///
    /// # Errors
    /// [`RegisterError::NoDmaBuf`] or [`RegisterError::DmaBufRefused`].
    pub fn register_dmabuf(
        domain: &Arc<ProtectionDomain>,
        buffer: &DmaBuf<'_>,
    ) -> Result<Arc<Self>, RegisterError> {
        Registration::of_dmabuf(domain, buffer, Self::ACCESS)
            .map(|registration| Arc::new(Self(registration)))
    }

    /// What to tell a peer.
    #[must_use]
    pub fn key(&self) -> RemoteKey {
        RemoteKey {
            address: self.0.address,
            len: self.0.len,
            rkey: self.0.rkey,
        }
    }
}

/// Memory that our own READs write to, and that no peer can reach.
pub struct LocalRegion(pub(crate) Registration);

impl LocalRegion {
    const ACCESS: ibv_access_flags = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;

    /// Makes a range of host memory a place to read into.
    ///
    /// # Errors
    /// [`RegisterError`]; [`RegisterError::MemoryLock`] says what to set.
    pub fn register<M: DeviceMemory>(
        domain: &Arc<ProtectionDomain>,
        memory: &Arc<M>,
        range: Range<u64>,
        options: RegisterOptions,
    ) -> Result<Arc<Self>, RegisterError> {
        Registration::of_memory(domain, memory, range, Self::ACCESS, options)
            .map(|registration| Arc::new(Self(registration)))
    }

    /// Makes device memory a place to read into.
    ///
    /// # Errors
    /// [`RegisterError::NoDmaBuf`] or [`RegisterError::DmaBufRefused`].
    pub fn register_dmabuf(
        domain: &Arc<ProtectionDomain>,
        buffer: &DmaBuf<'_>,
    ) -> Result<Arc<Self>, RegisterError> {
        Registration::of_dmabuf(domain, buffer, Self::ACCESS)
            .map(|registration| Arc::new(Self(registration)))
    }

    /// A piece of it to read into; `range` counts from the region's first byte. None where it is empty, outside the
    /// region or longer than a piece can be (4 GiB).
    #[must_use]
    pub fn piece(self: &Arc<Self>, range: Range<u64>) -> Option<LocalPiece> {
        if range.is_empty() || range.end > self.0.len {
            return None;
        }
        Some(LocalPiece {
            address: self.0.address + range.start,
            len: u32::try_from(range.end - range.start).ok()?,
            lkey: self.0.lkey,
            region: Arc::clone(self),
        })
    }
}

macro_rules! common {
    ($($region:ident)*) => {$(
        impl $region {
            /// Bytes there are.
            #[must_use]
            #[allow(clippy::len_without_is_empty)] // a region of zero bytes cannot be made
            pub fn len(&self) -> u64 {
                self.0.len()
            }

            /// Where it can be used.
            #[must_use]
            pub fn domain(&self) -> &Arc<ProtectionDomain> {
                self.0.domain()
            }
        }

        impl fmt::Debug for $region {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($region), "({} bytes)"), self.0.len)
            }
        }
    )*};
}
common!(ReadableRegion LocalRegion);

/// A checked range of a [`LocalRegion`], which it keeps registered.
#[derive(Debug, Clone)]
pub struct LocalPiece {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) lkey: u32,
    pub(crate) region: Arc<LocalRegion>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_before_the_device_sees_them() {
        assert_eq!(checked(&(8..24), 24).unwrap(), (8, 16));
        assert!(matches!(checked(&(8..8), 24), Err(RegisterError::Empty)));
        assert!(matches!(
            checked(&(8..25), 24),
            Err(RegisterError::OutOfRange {
                offset: 8,
                bytes: 17,
                memory: 24
            })
        ));
    }

    #[test]
    fn no_right_lets_a_peer_write() {
        for access in [ReadableRegion::ACCESS.0, LocalRegion::ACCESS.0] {
            assert_eq!(access & ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0, 0);
            assert_eq!(access & ibv_access_flags::IBV_ACCESS_REMOTE_ATOMIC.0, 0);
        }
        assert_eq!(ReadableRegion::ACCESS.0, 4);
        assert_eq!(LocalRegion::ACCESS.0, 1);
    }
}
