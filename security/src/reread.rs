//! What files say, read again when they change. What cannot be read leaves what was known in force.

use std::{
    fmt,
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use kvferry_observe::Counter;
use parking_lot::Mutex;

/// How often files are looked at, at most: what rotates certificates waits minutes, and a look is a
/// handful of system calls.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Changes only when a file was replaced, written to, or went.
type Stamp = Option<(u64, u64, i64, i64)>;
type Load<T, E> = Box<dyn Fn() -> Result<T, E> + Send + Sync>;

/// What was read, and which reading it is.
#[derive(Debug)]
pub(crate) struct Reading<T> {
    /// From 1 on, without gaps.
    pub(crate) number: u64,
    pub(crate) value: T,
}

/// What came of a look at the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looked {
    /// Nothing changed, or it is too early to look again.
    Same,
    /// There is something new.
    New,
    /// They changed, and say nothing that can be used.
    Bad,
}

/// Files, and what they said when they last made sense.
pub(crate) struct Reread<T, E> {
    /// For people: "the certificate", "the policy".
    what: &'static str,
    files: Vec<PathBuf>,
    load: Load<T, E>,
    current: ArcSwap<Reading<T>>,
    watch: Mutex<Watch>,
    /// Files that were bad when they were read.
    pub(crate) failed: Counter,
}

#[derive(Debug)]
struct Watch {
    stamps: Vec<Stamp>,
    looked: Instant,
    bad: bool,
}

impl<T, E: fmt::Display> Reread<T, E> {
    /// Reads for the first time.
    pub(crate) fn open(
        what: &'static str,
        files: Vec<PathBuf>,
        load: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        // Before they are read: what is written meanwhile is seen at the next look.
        let stamps = files.iter().map(|file| stamp(file)).collect();
        let value = load()?;
        Ok(Self {
            what,
            files,
            load: Box::new(load),
            current: ArcSwap::from_pointee(Reading { number: 1, value }),
            watch: Mutex::new(Watch {
                stamps,
                looked: Instant::now(),
                bad: false,
            }),
            failed: Counter::default(),
        })
    }

    /// As last read; costs no lock.
    pub(crate) fn known(&self) -> arc_swap::Guard<Arc<Reading<T>>> {
        self.current.load()
    }

    /// Looks whether there is something new, and gives what holds now.
    pub(crate) fn current(&self) -> Arc<Reading<T>> {
        self.look();
        self.current.load_full()
    }

    /// Whether the files, as they are now, are of no use.
    pub(crate) fn is_bad(&self) -> bool {
        self.watch.lock().bad
    }

    /// Looks whether there is something new, at most once a second.
    pub(crate) fn look(&self) -> Looked {
        // Whoever finds somebody looking has nothing to wait for.
        let Some(mut watch) = self.watch.try_lock() else {
            return Looked::Same;
        };
        if watch.looked.elapsed() < LOOK_EVERY {
            return Looked::Same;
        }
        watch.looked = Instant::now();
        let stamps: Vec<Stamp> = self.files.iter().map(|file| stamp(file)).collect();
        if stamps == watch.stamps {
            return Looked::Same;
        }
        watch.stamps = stamps;
        match (self.load)() {
            Ok(value) => {
                let number = self.current.load().number + 1;
                self.current.store(Arc::new(Reading { number, value }));
                watch.bad = false;
                tracing::info!(files = ?self.files, "{} was read anew", self.what);
                Looked::New
            }
            Err(error) => {
                watch.bad = true;
                self.failed.inc();
                tracing::warn!(
                    "{} changed and is of no use: {error}; what was read before stays in force",
                    self.what
                );
                Looked::Bad
            }
        }
    }
}

impl<T, E> fmt::Debug for Reread<T, E> {
    // What was read may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reread")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn stamp(file: &Path) -> Stamp {
    let of = |meta: Metadata| (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
    std::fs::metadata(file).ok().map(of)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_makes_no_sense_leaves_the_old_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("n");
        fs::write(&file, "1").unwrap();
        let path = file.clone();
        let load = move || fs::read_to_string(&path).unwrap_or_default().parse::<u32>();
        let number = Reread::open("the number", vec![file.clone()], load).unwrap();
        let look = || {
            number.watch.lock().looked -= LOOK_EVERY;
            number.look()
        };
        assert_eq!(look(), Looked::Same);
        fs::write(&file, "nonsense").unwrap();
        assert_eq!((look(), look()), (Looked::Bad, Looked::Same), "told once");
        assert_eq!((number.known().value, number.is_bad()), (1, true));
        fs::remove_file(&file).unwrap();
        assert_eq!(look(), Looked::Bad);
        fs::write(&file, "22").unwrap();
        assert_eq!(number.look(), Looked::Same, "too early");
        assert_eq!(look(), Looked::New);
        let now = number.known();
        assert_eq!((now.value, now.number, number.is_bad()), (22, 2, false));
        assert_eq!(number.failed.get(), 2);
    }
}
