//! Building and steering the fake.

use std::{
    ffi::{CString, c_char, c_int, c_long},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

use crate::common::World;

/// A libcuda of its own: nothing else in the process counts its calls.
pub(crate) struct Fake {
    pub(crate) world: World,
    control: libloading::Library,
    _dir: TempDir,
}

/// Compiles the fake, once for each set of options, and gives a copy of its own.
pub(crate) fn library(options: &[&str]) -> (TempDir, PathBuf) {
    static BUILDS: OnceLock<TempDir> = OnceLock::new();
    static BUILDING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let builds = BUILDS.get_or_init(|| TempDir::new().unwrap());
    let build = builds.path().join(format!("fake{}.so", options.concat()));
    let guard = BUILDING.lock();
    if !build.exists() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/fake_cuda.c");
        let status = Command::new("cc")
            .args([
                "-std=gnu11",
                "-O1",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-shared",
                "-fPIC",
                "-pthread",
            ])
            .args(options)
            .arg("-o")
            .arg(&build)
            .arg(source)
            .status()
            .expect("a C compiler");
        assert!(status.success());
    }
    drop(guard);
    // The loader tells libraries apart by their file.
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("libcuda-fake.so");
    std::fs::copy(build, &path).unwrap();
    (dir, path)
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(options: &[&str]) -> Self {
        let (dir, path) = library(options);
        let world = World::open(Some(path.clone())).unwrap();
        // SAFETY: the library was loaded before, and runs nothing when it is loaded.
        let control = unsafe { libloading::Library::new(path) }.unwrap();
        Self {
            world,
            control,
            _dir: dir,
        }
    }

    /// The calls of a function after the next `after` fail with this code, `times` times.
    pub(crate) fn fail(&self, function: &str, code: i32, after: i64, times: i64) {
        let name = CString::new(function).unwrap();
        // SAFETY: the type is the one of the fake's source; the name lives through the call.
        unsafe {
            let fail = self
                .control
                .get::<unsafe extern "C" fn(*const c_char, c_int, c_long, c_long)>(b"fake_fail\0")
                .unwrap();
            fail(name.as_ptr(), code, after, times);
        }
    }

    pub(crate) fn calls(&self, function: &str) -> i64 {
        self.ask(b"fake_calls\0", function)
    }

    /// What there is now of: violations, contexts, memories, imports, pins, streams, events.
    pub(crate) fn get(&self, what: &str) -> i64 {
        let value = self.ask(b"fake_get\0", what);
        assert!(value >= 0, "{what}: {value}");
        value
    }

    fn ask(&self, function: &[u8], name: &str) -> i64 {
        let name = CString::new(name).unwrap();
        // SAFETY: the type is the one of the fake's source; the name lives through the call.
        unsafe {
            let ask = self
                .control
                .get::<unsafe extern "C" fn(*const c_char) -> c_long>(function)
                .unwrap();
            ask(name.as_ptr())
        }
    }

    /// Sets: hold (1: no copy is begun), `delay_us` (of each copy), dmabuf (0: not supported).
    pub(crate) fn set(&self, what: &str, value: i64) {
        let name = CString::new(what).unwrap();
        // SAFETY: the type is the one of the fake's source; the name lives through the call.
        unsafe {
            let set = self
                .control
                .get::<unsafe extern "C" fn(*const c_char, c_long)>(b"fake_set\0")
                .unwrap();
            set(name.as_ptr(), value);
        }
    }

    /// How many contexts are on this thread's stack.
    pub(crate) fn depth(&self) -> i64 {
        // SAFETY: the type is the one of the fake's source.
        unsafe {
            self.control
                .get::<unsafe extern "C" fn() -> c_long>(b"fake_depth\0")
                .unwrap()()
        }
    }

    /// Everything was given back, and nothing was used that was not there.
    pub(crate) fn is_clean(&self) {
        for what in [
            "violations",
            "events",
            "streams",
            "pins",
            "imports",
            "memories",
            "contexts",
        ] {
            assert_eq!(self.get(what), 0, "{what}");
        }
        assert_eq!(self.depth(), 0, "a context was left current");
    }
}
