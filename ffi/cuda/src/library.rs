//! The library and the devices it knows.

use std::{
    ffi::{CStr, OsStr, c_char, c_int},
    fmt,
    path::Path,
    sync::Mutex,
};

use crate::{
    CallError, Device, DeviceUuid, Status, lock,
    sys::{CUresult, Driver},
};

/// What is looked for. The driver brings it, not the toolkit.
pub const LIBRARY: &str = "libcuda.so.1";

/// Most devices a search looks at: more than any machine has, so that a broken driver ends it too.
pub const MAX_DEVICES: u32 = 1024;

/// libcuda, loaded and initialised. Cheap to copy. It is never unloaded: the driver keeps state behind the
/// program's back.
#[derive(Clone, Copy)]
pub struct Library {
    pub(crate) driver: &'static Driver,
}

/// Why there is no CUDA.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// The library is not there, or does not load.
    #[error(
        "cannot load {name}: {said}; GPU memory needs NVIDIA's driver (Debian: libcuda1; in containers the NVIDIA \
         container toolkit provides it)"
    )]
    Library {
        /// What was looked for.
        name: String,
        /// What the loader said.
        said: String,
    },
    /// A library of that name lacks a function that is needed.
    #[error(
        "{name} has no {symbol}: {said}; it is no libcuda, or one from before CUDA 11.0 (driver 450): update the driver"
    )]
    Symbol {
        /// What was loaded.
        name: String,
        /// What is missing.
        symbol: &'static str,
        /// What the loader said.
        said: String,
    },
    /// The library is there, and no GPU.
    #[error("libcuda finds no GPU: {0}")]
    NoDevice(CallError),
    /// The library does not initialise.
    #[error("libcuda does not start: {0}")]
    Init(CallError),
}

/// A device cannot be found.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// No device of this process has that identity.
    #[error(
        "there is no GPU {uuid} for this process; there are: {}; give the agent the engine's GPUs (container options, CUDA_VISIBLE_DEVICES)",
        list(present)
    )]
    NoSuchUuid {
        /// What was looked for.
        uuid: DeviceUuid,
        /// What there is: ordinal, identity and name.
        present: Vec<String>,
    },
    /// Fewer devices than that.
    #[error("there is no GPU {ordinal}: this process has {count}, counted from 0")]
    NoSuchOrdinal {
        /// What was looked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// The driver does not answer.
    #[error("cannot look at the GPUs: {0}")]
    Failed(#[from] CallError),
}

fn list(present: &[String]) -> String {
    if present.is_empty() {
        "none".to_owned()
    } else {
        present.join(", ")
    }
}

/// A driver's version, as it counts: 12040 is CUDA 12.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriverVersion(pub u32);

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CUDA {}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

impl Library {
    /// Loads libcuda, once for the whole program.
    ///
    /// # Errors
    /// [`LoadError`] says what is missing. Another call tries again.
    pub fn load() -> Result<Self, LoadError> {
        // Kept also where it does not start: it is opened once, however often that is tried.
        static OPENED: Mutex<Option<Library>> = Mutex::new(None);
        let mut opened = lock(&OPENED);
        let library = match *opened {
            Some(library) => library,
            None => *opened.insert(Self::open(OsStr::new(LIBRARY))?),
        };
        library.start()
    }

    /// Loads the library at a path, anew with each call: for a driver in an unusual place, and for tests.
    /// What is at the path becomes part of this program.
    ///
    /// # Errors
    /// As [`Library::load`].
    pub fn load_from(path: &Path) -> Result<Self, LoadError> {
        Self::open(path.as_os_str())?.start()
    }

    fn open(path: &OsStr) -> Result<Self, LoadError> {
        Ok(Self {
            driver: Box::leak(Box::new(Driver::open(path)?)),
        })
    }

    /// Initialises the driver; does nothing where that was done before.
    fn start(self) -> Result<Self, LoadError> {
        // SAFETY: takes no pointer; the flags must be 0.
        let result = unsafe { (self.driver.cuInit)(0) };
        self.check("cuInit", result)
            .map_err(|error| match error.status {
                Status::NoDevice => LoadError::NoDevice(error),
                _ => LoadError::Init(error),
            })?;
        Ok(self)
    }

    /// The newest CUDA the driver speaks.
    ///
    /// # Errors
    /// What the driver says.
    pub fn driver_version(&self) -> Result<DriverVersion, CallError> {
        let mut version: c_int = 0;
        // SAFETY: the pointer is valid for the write of one int.
        let result = unsafe { (self.driver.cuDriverGetVersion)(&raw mut version) };
        self.check("cuDriverGetVersion", result)?;
        Ok(DriverVersion(u32::try_from(version).unwrap_or(0)))
    }

    /// Can device memory be exported as dma-buf, as far as the library tells? (Since CUDA 11.7.) A device
    /// may still refuse: [`Device::has_dmabuf`].
    #[must_use]
    pub fn has_dmabuf(&self) -> bool {
        self.driver.cuMemGetHandleForAddressRange.is_some()
    }

    /// The devices this process may use, by ordinal.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn devices(&self) -> Result<Vec<Device>, DeviceError> {
        let count = self.count()?;
        (0..count)
            .map(|ordinal| Device::open(*self, ordinal))
            .collect::<Result<_, _>>()
            .map_err(Into::into)
    }

    /// One device. Ordinals mean something to this process only: another may count otherwise.
    ///
    /// # Errors
    /// [`DeviceError::NoSuchOrdinal`] or [`DeviceError::Failed`].
    pub fn device(&self, ordinal: u32) -> Result<Device, DeviceError> {
        let count = self.count()?;
        if ordinal >= count {
            return Err(DeviceError::NoSuchOrdinal { ordinal, count });
        }
        Ok(Device::open(*self, ordinal)?)
    }

    /// The device of that identity: the one way in which two processes can name the same GPU.
    ///
    /// # Errors
    /// [`DeviceError::NoSuchUuid`] lists those there are; [`DeviceError::Failed`].
    pub fn device_by_uuid(&self, uuid: DeviceUuid) -> Result<Device, DeviceError> {
        let mut present = Vec::new();
        for device in self.devices()? {
            if device.uuid() == uuid {
                return Ok(device);
            }
            present.push(format!(
                "{} {} ({})",
                device.ordinal(),
                device.uuid(),
                device.name()
            ));
        }
        Err(DeviceError::NoSuchUuid { uuid, present })
    }

    fn count(&self) -> Result<u32, CallError> {
        let mut count: c_int = 0;
        // SAFETY: the pointer is valid for the write of one int.
        let result = unsafe { (self.driver.cuDeviceGetCount)(&raw mut count) };
        self.check("cuDeviceGetCount", result)?;
        Ok(u32::try_from(count).unwrap_or(0).min(MAX_DEVICES))
    }

    /// A call's answer, with the driver's words where it failed.
    pub(crate) fn check(&self, call: &'static str, result: CUresult) -> Result<(), CallError> {
        if result == 0 {
            return Ok(());
        }
        let name = self.words(self.driver.cuGetErrorName, result);
        let text = self.words(self.driver.cuGetErrorString, result);
        let said = [name, text]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ");
        Err(CallError {
            call,
            status: Status::from_code(result),
            said,
        })
    }

    fn words(
        &self,
        ask: unsafe extern "C" fn(CUresult, *mut *const c_char) -> CUresult,
        result: CUresult,
    ) -> Option<String> {
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: the pointer is valid for the write of one pointer.
        let answer = unsafe { ask(result, &raw mut text) };
        if answer != 0 || text.is_null() {
            return None;
        }
        // SAFETY: the driver gives a C string that lives as long as the library.
        let text = unsafe { CStr::from_ptr(text) };
        Some(text.to_string_lossy().into_owned())
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("dmabuf", &self.has_dmabuf())
            .finish_non_exhaustive()
    }
}
