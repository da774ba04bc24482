//! An open device: what it can do, its ports and their addresses.

use std::{
    ffi::CStr,
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    ptr::NonNull,
    sync::Arc,
};

use kvferry_rdma_sys::{
    Verbs, errno, ibv_context, ibv_device_attr, ibv_gid_entry, ibv_gid_type, ibv_port_attr,
};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::{
    AddressError, AsyncEvent, Gid, GidEntry, GidKind, GidPreference, LocalAddress, PortInfo,
    choose_address, software, sysfs,
};

/// A device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no device node.
    #[error(
        "cannot open {device}: its node under /dev/infiniband is missing; load ib_uverbs, or give the container the devices (--device /dev/infiniband)"
    )]
    NoNode {
        /// The device.
        device: String,
    },
    /// This user may not.
    #[error(
        "cannot open {device}: {source}; give this user read and write access to /dev/infiniband/uverbs*"
    )]
    NotPermitted {
        /// The device.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot open {device}: {what}: {source}; see the kernel's log")]
    Failed {
        /// The device.
        device: String,
        /// What was tried.
        what: &'static str,
        /// What the driver said.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn refused(device: &str, source: io::Error) -> Self {
        let device = device.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NoNode { device },
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted { device, source },
            _ => Self::Failed {
                device,
                what: "the driver refuses",
                source,
            },
        }
    }
}

/// A device did not answer a question.
#[derive(Debug, thiserror::Error)]
#[error("{device} port {port}: cannot query {what}: {source}")]
pub struct QueryError {
    /// The device.
    pub device: String,
    /// The port.
    pub port: u8,
    /// What was asked.
    pub what: &'static str,
    /// What the driver said.
    pub source: io::Error,
}

/// No address of a port, for either reason.
#[derive(Debug, thiserror::Error)]
pub enum PortAddressError {
    /// The device does not answer.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// It answers, and nothing fits.
    #[error(transparent)]
    Address(#[from] AddressError),
}

/// What a device can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceAttributes {
    /// The firmware's version, as the driver writes it.
    pub firmware: String,
    /// How many ports there are.
    pub ports: u8,
    /// Most work requests a queue pair can hold.
    pub max_queue_depth: u32,
    /// Most local pieces of one READ.
    pub max_pieces: u32,
    /// Most completions a completion queue can hold.
    pub max_completions: u32,
    /// Most queue pairs.
    pub max_queue_pairs: u32,
    /// Most registered regions.
    pub max_regions: u32,
    /// Most bytes of one registered region.
    pub max_region_bytes: u64,
    /// READs under way that a queue pair of this device answers at a time.
    pub responder_depth: u8,
    /// READs under way that a queue pair of this device starts at a time.
    pub initiator_depth: u8,
}

impl DeviceAttributes {
    fn from_raw(raw: &ibv_device_attr) -> Self {
        let count = |value: i32| u32::try_from(value).unwrap_or(0);
        let depth = |value: i32| u8::try_from(value.clamp(0, 255)).unwrap_or(0);
        // Zero means that the driver does not tell the two apart.
        let pieces = match (count(raw.max_sge), count(raw.max_sge_rd)) {
            (all, 0) => all,
            (all, for_reads) => all.min(for_reads),
        };
        // SAFETY: the bytes of the array are initialised; char and u8 are of one size.
        let firmware = unsafe { &*((&raw const raw.fw_ver) as *const [u8; 64]) };
        Self {
            firmware: CStr::from_bytes_until_nul(firmware)
                .map(|text| text.to_string_lossy().into_owned())
                .unwrap_or_default(),
            ports: raw.phys_port_cnt,
            max_queue_depth: count(raw.max_qp_wr),
            max_pieces: pieces,
            max_completions: count(raw.max_cqe),
            max_queue_pairs: count(raw.max_qp),
            max_regions: count(raw.max_mr),
            max_region_bytes: raw.max_mr_size,
            responder_depth: depth(raw.max_qp_rd_atom),
            initiator_depth: depth(raw.max_qp_init_rd_atom),
        }
    }
}

/// An open device. Everything made from it keeps it open.
pub struct Context {
    raw: NonNull<ibv_context>,
    pub(crate) verbs: &'static Verbs,
    name: String,
    numa_node: Option<u32>,
    attributes: DeviceAttributes,
    software: bool,
}

// SAFETY: libibverbs' calls on a context may come from any thread at any time (its man pages; the
// providers lock); the fields this crate reads are never written to after the device was opened.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub(crate) fn new(
        raw: NonNull<ibv_context>,
        verbs: &'static Verbs,
        name: &str,
        numa_node: Option<u32>,
    ) -> Result<Arc<Self>, OpenError> {
        let mut attributes = ibv_device_attr::default();
        // SAFETY: the context was just opened; `attributes` is valid for the write.
        let result = unsafe { verbs.ibv_query_device(raw.as_ptr(), &raw mut attributes) };
        // From here on the context is closed when `this` is dropped.
        let this = Self {
            raw,
            verbs,
            name: name.into(),
            numa_node,
            software: software::is_software(name, attributes.vendor_id),
            attributes: DeviceAttributes::from_raw(&attributes),
        };
        let failed = |what, source| OpenError::Failed {
            device: name.into(),
            what,
            source,
        };
        if let Some(error) = errno(result) {
            return Err(failed("it does not say what it can do", error));
        }
        set_nonblocking(this.as_fd())
            .map_err(|error| failed("cannot prepare its events", error))?;
        Ok(Arc::new(this))
    }

    /// As the kernel calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The NUMA node it is plugged into, where that is known.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    /// True where no card does the work: Soft-RoCE, Soft-iWARP, and what cannot be told from them. Such a device has no
    /// checks of its own between memory and memory; who reads by it must check.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.software
    }

    /// What it can do.
    #[must_use]
    pub fn attributes(&self) -> &DeviceAttributes {
        &self.attributes
    }

    /// A port (from 1), as it is now.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn port(&self, port: u8) -> Result<PortInfo, QueryError> {
        let mut raw = ibv_port_attr::default();
        // SAFETY: the context is open. The library's symbol writes the fields that every version of
        // ibv_port_attr has, up to `flags`, at the places the current one has them.
        let result = unsafe {
            self.verbs
                .ibv_query_port(self.raw(), port, (&raw mut raw).cast())
        };
        match errno(result) {
            None => Ok(PortInfo::from_raw(port, &raw)),
            Some(source) => Err(self.query_error(port, "its state", source)),
        }
    }

    /// All ports, as they are now.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn ports(&self) -> Result<Vec<PortInfo>, QueryError> {
        (1..=self.attributes.ports).map(|n| self.port(n)).collect()
    }

    /// The addresses of a port.
    ///
    /// # Errors
    /// [`QueryError`].
    pub fn gids(&self, port: u8) -> Result<Vec<GidEntry>, QueryError> {
        if self.verbs._ibv_query_gid_table.is_err() {
            return sysfs::gids(&self.name, port)
                .map_err(|source| self.query_error(port, "its GIDs in /sys", source));
        }
        let places = self.ports()?.iter().map(|p| p.gid_table_len as usize).sum();
        let mut entries = vec![ibv_gid_entry::default(); places];
        // SAFETY: the context is open, and `entries` has room for `places` entries of this size.
        let found = unsafe {
            self.verbs._ibv_query_gid_table(
                self.raw(),
                entries.as_mut_ptr(),
                entries.len(),
                0,
                size_of::<ibv_gid_entry>(),
            )
        };
        let found = usize::try_from(found).map_err(|_| {
            let number = i32::try_from(-found).unwrap_or(libc::EIO);
            self.query_error(port, "its GIDs", io::Error::from_raw_os_error(number))
        })?;
        let entry = |raw: &ibv_gid_entry| {
            // SAFETY: both readings of the union are plain bytes.
            let gid = Gid(unsafe { raw.gid.raw });
            (raw.port_num == u32::from(port) && !gid.is_zero()).then_some(GidEntry {
                index: raw.gid_index,
                gid,
                kind: match raw.gid_type {
                    ibv_gid_type::IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
                    ibv_gid_type::IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
                    _ => GidKind::InfiniBand,
                },
            })
        };
        Ok(entries.iter().take(found).filter_map(entry).collect())
    }

    /// The address to use on a port.
    ///
    /// # Errors
    /// [`PortAddressError`].
    pub fn address(
        &self,
        port: u8,
        wanted: GidPreference,
    ) -> Result<LocalAddress, PortAddressError> {
        let info = self.port(port)?;
        let table = self.gids(port)?;
        Ok(choose_address(&self.name, &info, &table, wanted)?)
    }

    /// The next event, or None where nothing happened. [`AsFd`] gives the descriptor that becomes
    /// readable when something does.
    ///
    /// # Errors
    /// What the kernel says: the device is gone.
    pub fn next_event(&self) -> io::Result<Option<AsyncEvent>> {
        crate::events::next(self)
    }

    pub(crate) fn raw(&self) -> *mut ibv_context {
        self.raw.as_ptr()
    }

    fn query_error(&self, port: u8, what: &'static str, source: io::Error) -> QueryError {
        QueryError {
            device: self.name.clone(),
            port,
            what,
            source,
        }
    }
}

impl AsFd for Context {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the context, which `self` keeps open, and the
        // field is not written to after the device was opened.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).async_fd) }
    }
}

impl AsRawFd for Context {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: everything made from the context held an `Arc` of it, so nothing is left.
        // Its result is of no use: what could not be closed stays with the kernel until the end.
        unsafe { self.verbs.ibv_close_device(self.raw.as_ptr()) };
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.name)
    }
}

/// Reads on the descriptor answer "nothing there" instead of waiting.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = fcntl_getfl(fd)?;
    Ok(fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
