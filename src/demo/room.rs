//! Is there room for three copies of the blocks?

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::statvfs;

use super::workload::BLOCK_BYTES;
use crate::size::ByteSize;

/// One copy per engine.
const COPIES: u64 = 3;
/// Left to the processes themselves, and to everything else on the machine.
const SPARE_BYTES: u64 = 256 << 20;
/// Fewest blocks: below, the owner's death has no middle to be in.
pub(super) const MIN_BLOCKS: u32 = 8;
/// Most blocks: 64 GiB a copy, and half of the hashes one request may carry.
pub(super) const MAX_BLOCKS: u32 = 32_768;

/// Why the demo has no room.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoomError {
    #[error("{path} cannot be looked at: {source}", path = path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "--bytes {asked}: the demo takes {least} to {most}",
        least = ByteSize(u64::from(MIN_BLOCKS) * BLOCK_BYTES),
        most = ByteSize(u64::from(MAX_BLOCKS) * BLOCK_BYTES)
    )]
    OutOfRange { asked: ByteSize },
    #[error(
        "three copies of {asked} need {need}, but only {free} are free in {place}: use fewer --bytes{other}"
    )]
    TooSmall {
        asked: ByteSize,
        need: ByteSize,
        free: ByteSize,
        place: String,
        other: &'static str,
    },
}

/// What is free for the copies, and where it is scarcest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Room {
    free: u64,
    place: String,
    other: &'static str,
}

/// How many blocks to take: as many as asked for, or, where nobody asked, as many as fit.
pub(super) fn blocks(
    asked: Option<ByteSize>,
    usual: ByteSize,
    directory: &Path,
) -> Result<u32, RoomError> {
    fitting(asked, usual, &room(directory)?)
}

fn fitting(asked: Option<ByteSize>, usual: ByteSize, room: &Room) -> Result<u32, RoomError> {
    let wanted = asked.unwrap_or(usual);
    let blocks = wanted.0.div_ceil(BLOCK_BYTES);
    let allowed = u64::from(MIN_BLOCKS)..=u64::from(MAX_BLOCKS);
    if !allowed.contains(&blocks) {
        return Err(RoomError::OutOfRange { asked: wanted });
    }
    let fit = room.free / COPIES / BLOCK_BYTES;
    let taken = match asked {
        None => blocks.min(fit),
        Some(_) => blocks,
    };
    if taken > fit || taken < u64::from(MIN_BLOCKS) {
        let least = taken.max(u64::from(MIN_BLOCKS)) * BLOCK_BYTES;
        return Err(RoomError::TooSmall {
            asked: ByteSize(least),
            need: ByteSize(least * COPIES),
            free: ByteSize(room.free),
            place: room.place.clone(),
            other: room.other,
        });
    }
    Ok(taken as u32)
}

fn room(directory: &Path) -> Result<Room, RoomError> {
    let found = statvfs(directory).map_err(|error| RoomError::Directory {
        path: directory.to_owned(),
        source: error.into(),
    })?;
    let disk = Room {
        free: found.f_bavail.saturating_mul(found.f_frsize),
        place: directory.display().to_string(),
        other: ", or another --dir",
    };
    let memory = Room {
        free: memory_available().saturating_sub(SPARE_BYTES),
        place: "memory".to_owned(),
        other: "",
    };
    Ok(match disk.free <= memory.free {
        true => disk,
        false => memory,
    })
}

/// What the kernel thinks can be had without swapping, and the control group allows. Where neither
/// says anything, the file system's own bound has to do.
fn memory_available() -> u64 {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let host = field(&read("/proc/meminfo"), "MemAvailable:").map(|kib| kib << 10);
    let group = || {
        let limit: u64 = read("/sys/fs/cgroup/memory.max").trim().parse().ok()?;
        let used: u64 = read("/sys/fs/cgroup/memory.current").trim().parse().ok()?;
        let cache = field(&read("/sys/fs/cgroup/memory.stat"), "inactive_file").unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(cache)))
    };
    host.into_iter().chain(group()).min().unwrap_or(u64::MAX)
}

/// The number behind a name, in files of one name a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn room(free: u64) -> Room {
        Room {
            free,
            place: "here".into(),
            other: "",
        }
    }

    #[test]
    fn the_usual_size_shrinks_to_what_fits() {
        let usual = ByteSize(GIB);
        assert_eq!(fitting(None, usual, &room(4 * GIB)).unwrap(), 512);
        assert_eq!(fitting(None, usual, &room(64 << 20)).unwrap(), 10);
        let none = fitting(None, usual, &room(16 << 20));
        assert!(matches!(none, Err(RoomError::TooSmall { .. })));
    }

    #[test]
    fn a_size_that_was_asked_for_fits_or_is_refused() {
        let usual = ByteSize(GIB);
        let ask = |bytes, free| fitting(Some(ByteSize(bytes)), usual, &room(free));
        assert_eq!(ask(64 << 20, GIB).unwrap(), 32);
        assert_eq!(ask((64 << 20) + 1, GIB).unwrap(), 33);
        assert!(matches!(ask(GIB, GIB), Err(RoomError::TooSmall { .. })));
        assert!(matches!(ask(1, GIB), Err(RoomError::OutOfRange { .. })));
        assert!(matches!(
            ask(u64::MAX, GIB),
            Err(RoomError::OutOfRange { .. })
        ));
    }

    #[test]
    fn numbers_are_found_by_their_name() {
        let text = "MemTotal:  9 kB\nMemAvailable:   17 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(17));
        assert_eq!(field(text, "MemFree:"), None);
    }
}
