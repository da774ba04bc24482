//! The library and the devices it knows.

use std::{
    ffi::{CStr, c_int},
    fs, io,
    ptr::NonNull,
    sync::Arc,
};

use kvferry_rdma_sys::{LoadError, Verbs, ibv_device};

use crate::{Context, OpenError};

/// libibverbs, loaded. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Library {
    pub(crate) verbs: &'static Verbs,
}

/// The devices cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The kernel has no RDMA.
    #[error(
        "the kernel has no RDMA: no ib_uverbs module is loaded (modprobe ib_uverbs, or install the card's driver)"
    )]
    NoKernelSupport,
    /// The kernel has devices, and there are no nodes to reach them by.
    #[error("the kernel has RDMA devices ({}), but /dev/infiniband has no node for them; give the container the devices (--device /dev/infiniband)", devices.join(", "))]
    NoNodes {
        /// As the kernel calls them.
        devices: Vec<String>,
    },
    /// The kernel has devices, and the library has no driver for any.
    #[error("the kernel has RDMA devices ({}), but libibverbs has no driver for them; install it (Debian: ibverbs-providers, RHEL: libibverbs)", devices.join(", "))]
    NoDrivers {
        /// As the kernel calls them.
        devices: Vec<String>,
    },
    /// It has, and the library fails all the same.
    #[error("libibverbs cannot list the RDMA devices: {0}")]
    Failed(io::Error),
}

impl Library {
    /// Loads libibverbs, once for the whole program.
    ///
    /// # Errors
    /// [`LoadError`] names what was looked for and what the loader said.
    pub fn load() -> Result<Self, LoadError> {
        Ok(Self {
            verbs: Verbs::load()?,
        })
    }

    /// Can dma-buf descriptors be registered, as far as the library tells? The driver may still refuse.
    #[must_use]
    pub fn has_dmabuf(&self) -> bool {
        self.verbs.ibv_reg_dmabuf_mr.is_ok()
    }

    /// Can registrations ask for relaxed ordering?
    #[must_use]
    pub fn has_relaxed_ordering(&self) -> bool {
        self.verbs.ibv_reg_mr_iova2.is_ok()
    }

    /// The devices there are now; an empty list where the kernel has RDMA but no device.
    ///
    /// # Errors
    /// [`ListError`].
    pub fn devices(&self) -> Result<Vec<Device>, ListError> {
        let mut count: c_int = 0;
        // SAFETY: `count` is valid for the write of one int.
        let raw = unsafe { self.verbs.ibv_get_device_list(&raw mut count) };
        let Some(raw) = NonNull::new(raw) else {
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::ENOSYS) => ListError::NoKernelSupport,
                _ => ListError::Failed(error),
            });
        };
        let list = Arc::new(DeviceList {
            raw,
            verbs: self.verbs,
        });
        let device = |at| {
            // SAFETY: the list has `count` entries, and is freed only when `list` is dropped.
            let raw = NonNull::new(unsafe { *list.raw.as_ptr().add(at) })?;
            // SAFETY: the device is one of a living list.
            let name = unsafe { self.verbs.ibv_get_device_name(raw.as_ptr()) };
            if name.is_null() {
                return None;
            }
            // SAFETY: the name is a C string that lives as long as the list.
            let name = unsafe { CStr::from_ptr(name) };
            // SAFETY: the device is one of a living list.
            let guid = unsafe { self.verbs.ibv_get_device_guid(raw.as_ptr()) };
            let name = name.to_string_lossy().into_owned();
            Some(Device {
                numa_node: numa_node(&name),
                name,
                guid: u64::from_be(guid),
                raw,
                list: Arc::clone(&list),
            })
        };
        let devices: Vec<Device> = (0..usize::try_from(count).unwrap_or(0))
            .filter_map(device)
            .collect();
        if devices.is_empty() {
            return why_none();
        }
        Ok(devices)
    }
}

struct DeviceList {
    raw: NonNull<*mut ibv_device>,
    verbs: &'static Verbs,
}

// SAFETY: the list is never written to after it was made; freeing it may happen on any thread.
unsafe impl Send for DeviceList {}
// SAFETY: as above.
unsafe impl Sync for DeviceList {}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the list came from ibv_get_device_list, is freed once, and every `Device` that
        // points into it held an `Arc` of it. Open contexts do not need it (ibv_free_device_list(3)).
        unsafe { self.verbs.ibv_free_device_list(self.raw.as_ptr()) };
    }
}

/// An RDMA device, not opened.
pub struct Device {
    name: String,
    guid: u64,
    numa_node: Option<u32>,
    raw: NonNull<ibv_device>,
    list: Arc<DeviceList>,
}

// SAFETY: the device is only pointed to, and the library's calls on it may come from any thread.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Device {
    /// As the kernel calls it: `mlx5_0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its globally unique identifier.
    #[must_use]
    pub fn guid(&self) -> u64 {
        self.guid
    }

    /// The NUMA node it is plugged into; None for a device that is nowhere, such as Soft-RoCE.
    #[must_use]
    pub fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`OpenError`] says what is missing.
    pub fn open(&self) -> Result<Arc<Context>, OpenError> {
        // SAFETY: the device is one of the list that `self` keeps alive.
        let raw = unsafe { self.list.verbs.ibv_open_device(self.raw.as_ptr()) };
        match NonNull::new(raw) {
            Some(raw) => Context::new(raw, self.list.verbs, &self.name, self.numa_node),
            None => Err(OpenError::refused(&self.name, io::Error::last_os_error())),
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.name)
            .field("numa_node", &self.numa_node)
            .finish_non_exhaustive()
    }
}

/// The library leaves out what it cannot use, and does not say so.
fn why_none() -> Result<Vec<Device>, ListError> {
    let names = |path| -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let devices = names("/sys/class/infiniband");
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let nodes = names("/dev/infiniband");
    Err(if nodes.iter().any(|node| node.starts_with("uverbs")) {
        ListError::NoDrivers { devices }
    } else {
        ListError::NoNodes { devices }
    })
}

fn numa_node(device: &str) -> Option<u32> {
    let path = crate::sysfs::device(device).join("device/numa_node");
    // -1 where the machine has one node or the bus does not tell.
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
