//! A span of host memory, mapped from a memfd, a file or nothing.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    sync::atomic::AtomicU64,
};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FileType, MemfdFlags, OFlags, SealFlags};

use crate::{AccessError, MemoryError, word};

/// Size of the hugepages asked for: the one size every x86-64 and arm64 server has.
const HUGEPAGE_BYTES: u64 = 2 << 20;

/// Whether a pool is backed by hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Ordinary pages.
    #[default]
    Off,
    /// Hugepages, or an error that says how to reserve them.
    Required,
}

/// A mapping that others may write to or read from at any time. See the crate's page.
#[derive(Debug)]
pub struct HostMemory {
    map: MmapRaw,
    len: u64,
    /// What the mapping came from; None for anonymous memory.
    file: Option<OwnedFd>,
    writable: bool,
    /// The file cannot shrink, so touching the mapping cannot raise SIGBUS. Memory without this is
    /// reached through the kernel only, where a truncated file is an error and no signal.
    stable: bool,
}

impl HostMemory {
    /// A memfd of its own, that can neither shrink nor grow. `name` shows in /proc/PID/maps.
    ///
    /// # Errors
    /// [`MemoryError`]; [`MemoryError::Allocate`] says what to do about missing hugepages.
    pub fn pool(name: &str, bytes: u64, hugepages: HugePages) -> Result<Self, MemoryError> {
        let (huge, bytes) = match hugepages {
            // Miri knows no memfd. What is done with the memory is the same.
            HugePages::Off if cfg!(miri) => return Self::anonymous(bytes),
            HugePages::Off => (MemfdFlags::empty(), bytes),
            HugePages::Required => (
                MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
                bytes
                    .checked_next_multiple_of(HUGEPAGE_BYTES)
                    .ok_or(MemoryError::TooLarge { bytes })?,
            ),
        };
        let file = Self::memfd(name, bytes, huge)?;
        seal(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        Self::map(file, bytes, true, true).map_err(|error| match error {
            MemoryError::Map { source, .. } if hugepages == HugePages::Required => {
                MemoryError::Allocate {
                    bytes,
                    what: "hugepages",
                    source,
                    advice: "reserve them with vm.nr_hugepages (2 MiB each), or turn hugepages off",
                }
            }
            other => other,
        })
    }

    /// A memfd that only this mapping can write to: later mappings by anyone are read-only.
    pub(crate) fn sole_writer(name: &str, bytes: u64) -> Result<Self, MemoryError> {
        if cfg!(miri) {
            return Self::anonymous(bytes);
        }
        let file = Self::memfd(name, bytes, MemfdFlags::empty())?;
        let memory = Self::map(file, bytes, true, true)?;
        if let Some(file) = &memory.file {
            seal(
                file,
                SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE,
            )?;
        }
        Ok(memory)
    }

    fn memfd(name: &str, bytes: u64, flags: MemfdFlags) -> Result<OwnedFd, MemoryError> {
        if bytes == 0 {
            return Err(MemoryError::Empty);
        }
        let allocate = |source: rustix::io::Errno| MemoryError::Allocate {
            bytes,
            what: if flags.is_empty() {
                "shared memory"
            } else {
                "hugepages"
            },
            source: source.into(),
            advice: "give the machine or the container more memory, or ask for less",
        };
        let file = rustix::fs::memfd_create(
            name,
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags,
        )
        .map_err(allocate)?;
        rustix::fs::ftruncate(&file, bytes).map_err(allocate)?;
        Ok(file)
    }

    /// Memory that belongs to nobody else, for small answers.
    ///
    /// # Errors
    /// [`MemoryError::Empty`], [`MemoryError::TooLarge`] or [`MemoryError::Map`].
    pub fn anonymous(bytes: u64) -> Result<Self, MemoryError> {
        let len = usize::try_from(bytes).map_err(|_| MemoryError::TooLarge { bytes })?;
        if len == 0 {
            return Err(MemoryError::Empty);
        }
        let map = MmapOptions::new()
            .len(len)
            .map_anon()
            .map_err(|source| MemoryError::Map { bytes, source })?;
        Ok(Self {
            map: map.into(),
            len: bytes,
            file: None,
            writable: true,
            stable: true,
        })
    }

    /// A file that another process owns, all of it, for reading and writing.
    ///
    /// # Errors
    /// [`MemoryError`] says what is wrong with the descriptor.
    pub fn import(file: OwnedFd) -> Result<Self, MemoryError> {
        let (bytes, stable) = inspect(&file)?;
        Self::map(file, bytes, true, stable)
    }

    /// As [`HostMemory::import`], by path. Symbolic links in the last part are refused.
    ///
    /// # Errors
    /// [`MemoryError::Open`], or as [`HostMemory::import`].
    pub fn import_path(path: &Path) -> Result<Self, MemoryError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            // NONBLOCK: a fifo must not hold up the caller before it is refused.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
            .open(path)
            .map_err(|source| MemoryError::Open {
                path: path.to_owned(),
                source,
            })?;
        Self::import(file.into())
    }

    /// A file of another process, for reading only.
    ///
    /// # Errors
    /// [`MemoryError`] says what is wrong with the descriptor.
    pub fn view(file: OwnedFd) -> Result<Self, MemoryError> {
        let (bytes, stable) = inspect(&file)?;
        Self::map(file, bytes, false, stable)
    }

    fn map(file: OwnedFd, bytes: u64, writable: bool, stable: bool) -> Result<Self, MemoryError> {
        let len = usize::try_from(bytes).map_err(|_| MemoryError::TooLarge { bytes })?;
        let mut options = MmapOptions::new();
        options.len(len);
        let map = if writable {
            options.map_raw(&file)
        } else {
            options.map_raw_read_only(&file)
        }
        .map_err(|source| MemoryError::Map { bytes, source })?;
        Ok(Self {
            map,
            len: bytes,
            file: Some(file),
            writable,
            stable,
        })
    }

    /// Bytes there are.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // memory of zero bytes cannot be made
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Device and inode of the file behind it: equal for two mappings of the same bytes. None for
    /// anonymous memory.
    ///
    /// # Errors
    /// [`MemoryError::Descriptor`].
    pub fn file_identity(&self) -> Result<Option<(u64, u64)>, MemoryError> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let stat = rustix::fs::fstat(file).map_err(|source| MemoryError::Descriptor {
            what: "cannot inspect the descriptor",
            source: source.into(),
        })?;
        Ok(Some((stat.st_dev, stat.st_ino)))
    }

    /// A descriptor through which this memory can be mapped for reading only.
    ///
    /// # Errors
    /// [`MemoryError::Descriptor`], also for anonymous memory.
    pub fn read_only_descriptor(&self) -> Result<OwnedFd, MemoryError> {
        let what = "cannot reopen the memory for reading";
        let file = self.backing(what)?;
        // A new open file description, so that its access mode is its own.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, 0.into()).map_err(|source| {
            MemoryError::Descriptor {
                what,
                source: source.into(),
            }
        })
    }

    /// A descriptor through which this memory can be mapped for writing too: for its own engine.
    ///
    /// # Errors
    /// [`MemoryError::Descriptor`], also for anonymous memory.
    pub fn descriptor(&self) -> Result<OwnedFd, MemoryError> {
        let what = "cannot duplicate the memory's descriptor";
        self.backing(what)?
            .try_clone_to_owned()
            .map_err(|source| MemoryError::Descriptor { what, source })
    }

    fn backing(&self, what: &'static str) -> Result<BorrowedFd<'_>, MemoryError> {
        let source = || io::Error::from(io::ErrorKind::Unsupported);
        match &self.file {
            Some(file) => Ok(file.as_fd()),
            None => Err(MemoryError::Descriptor {
                what,
                source: source(),
            }),
        }
    }

    /// Where the mapping begins and how many bytes it has, for devices that are told addresses. What
    /// lies there may change at any time: no reference to it may ever be made. Valid as long as `self`.
    #[must_use]
    pub fn as_raw_parts(&self) -> (*mut u8, usize) {
        (self.map.as_mut_ptr(), self.map.len())
    }

    /// Loads the little-endian u64 at an offset in one access, after everything this thread copied
    /// before. For words that another process stores atomically.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] outside the memory or off an 8-byte boundary.
    pub fn load_word(&self, offset: u64) -> Result<u64, AccessError> {
        Ok(word::load_after(self.word(offset)?))
    }

    /// The word at an offset. Only for memory that is stable.
    pub(crate) fn word(&self, offset: u64) -> Result<&AtomicU64, AccessError> {
        let at = self.range(offset, 8)?;
        if !offset.is_multiple_of(8) || !self.stable {
            return Err(AccessError::OutOfRange {
                offset,
                len: 8,
                memory: self.len,
            });
        }
        // SAFETY: the range is inside the mapping, which lives as long as `self`; the address is
        // 8-byte aligned, since mappings are page-aligned; memory of this kind is only ever
        // accessed through atomics, by the kernel, or by copies that tolerate change.
        Ok(unsafe { AtomicU64::from_ptr(self.as_ptr().add(at).cast()) })
    }

    /// Checks a range and gives its start.
    pub(crate) fn range(&self, offset: u64, len: u64) -> Result<usize, AccessError> {
        match offset.checked_add(len) {
            // The mapping's length fits in usize, so what is within it does.
            Some(end) if end <= self.len => Ok(offset as usize),
            _ => Err(AccessError::OutOfRange {
                offset,
                len,
                memory: self.len,
            }),
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    pub(crate) fn is_stable(&self) -> bool {
        self.stable
    }

    /// Is the whole mapping still backed? A device writes past the end of a file that was cut without
    /// noticing: ask after it has.
    ///
    /// # Errors
    /// [`AccessError::Gone`] where the file behind it is shorter by now.
    pub fn check_backed(&self) -> Result<(), AccessError> {
        let Some(file) = self.file.as_ref().filter(|_| !self.stable) else {
            return Ok(());
        };
        let stat = rustix::fs::fstat(file).map_err(|error| AccessError::Gone(error.into()))?;
        match u64::try_from(stat.st_size) {
            Ok(bytes) if bytes >= self.len => Ok(()),
            _ => Err(AccessError::Gone(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }
}

/// Length of a file, and whether it is sealed against shrinking.
fn inspect(file: &OwnedFd) -> Result<(u64, bool), MemoryError> {
    let stat = rustix::fs::fstat(file).map_err(|source| MemoryError::Descriptor {
        what: "cannot inspect the descriptor",
        source: source.into(),
    })?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(MemoryError::NotAFile);
    }
    let bytes = u64::try_from(stat.st_size).map_err(|_| MemoryError::NotAFile)?;
    if bytes == 0 {
        return Err(MemoryError::Empty);
    }
    // Files that know no seals answer with an error: they can shrink.
    let stable =
        rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    Ok((bytes, stable))
}

fn seal(file: &OwnedFd, seals: SealFlags) -> Result<(), MemoryError> {
    rustix::fs::fcntl_add_seals(file, seals | SealFlags::SEAL).map_err(|source| {
        MemoryError::Descriptor {
            what: "cannot seal the memory",
            source: source.into(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_can_be_viewed_but_not_written_through_the_view() {
        let pool = HostMemory::pool("test", 8192, HugePages::Off).unwrap();
        pool.write_at(4096, b"hello").unwrap();
        let view = HostMemory::view(pool.read_only_descriptor().unwrap()).unwrap();
        let mut seen = [0; 5];
        view.read_at(4096, &mut seen).unwrap();
        assert_eq!(&seen, b"hello");
        assert!(matches!(view.write_at(0, b"x"), Err(AccessError::ReadOnly)));
        // The read-only descriptor cannot be mapped for writing.
        assert!(matches!(
            HostMemory::import(pool.read_only_descriptor().unwrap()),
            Err(MemoryError::Map { .. })
        ));
    }

    #[test]
    fn a_file_that_is_cut_is_an_error_and_no_signal() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(65_536).unwrap();
        let memory = HostMemory::import_path(file.path()).unwrap();
        memory.write_at(60_000, &[7; 100]).unwrap();
        file.as_file().set_len(4096).unwrap();
        let mut seen = [0; 100];
        assert!(matches!(
            memory.read_at(60_000, &mut seen),
            Err(AccessError::Gone(_))
        ));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(matches!(
            HostMemory::import(reader),
            Err(MemoryError::NotAFile)
        ));
        assert!(matches!(
            HostMemory::import_path(Path::new("/dev/shm/kvferry-no-such-file")),
            Err(MemoryError::Open { .. })
        ));
        assert!(matches!(
            HostMemory::pool("none", 0, HugePages::Off),
            Err(MemoryError::Empty)
        ));
    }

    #[test]
    fn ranges_are_checked() {
        let memory = HostMemory::anonymous(100).unwrap();
        assert!(memory.read_at(100, &mut []).is_ok());
        for (offset, len) in [(96, 5), (u64::MAX, 1), (101, 0)] {
            let mut buffer = vec![0; len];
            assert!(matches!(
                memory.read_at(offset, &mut buffer),
                Err(AccessError::OutOfRange { .. })
            ));
        }
        assert!(memory.load_word(88).is_ok());
        assert!(memory.load_word(90).is_err());
        assert!(memory.load_word(96).is_err());
    }
}
