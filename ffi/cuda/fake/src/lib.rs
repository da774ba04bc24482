//! A libcuda over host memory (`fake_cuda.c`), for tests of everything that touches GPU memory. It does what no GPU does
//! on demand: copies that do not begin, calls that fail, a device that is lost.
//!
//! The file is named `libcuda.so.1`, so that a process with [`FakeCuda::dir`] in `LD_LIBRARY_PATH` loads it as its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::{
    ffi::{CString, c_char, c_int, c_long},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
};

use tempfile::TempDir;

/// A libcuda of its own: nothing else in the process counts its calls.
pub struct FakeCuda {
    control: libloading::Library,
    path: PathBuf,
    dir: TempDir,
}

/// Compiles the fake, once for each set of options, and gives a copy of its own.
///
/// # Panics
/// Without a C compiler.
#[must_use]
pub fn compile(options: &[&str]) -> (TempDir, PathBuf) {
    static BUILDS: OnceLock<TempDir> = OnceLock::new();
    static BUILDING: Mutex<()> = Mutex::new(());
    let builds = BUILDS.get_or_init(|| TempDir::new().unwrap());
    let build = builds.path().join(format!("fake{}.so", options.concat()));
    let guard = BUILDING.lock();
    if !build.exists() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fake_cuda.c");
        let status = Command::new("cc")
            .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror"])
            .args(["-shared", "-fPIC", "-pthread"])
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
    let path = dir.path().join("libcuda.so.1");
    std::fs::copy(build, &path).unwrap();
    (dir, path)
}

impl Default for FakeCuda {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeCuda {
    /// With all a driver has.
    ///
    /// # Panics
    /// Without a C compiler.
    #[must_use]
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// Compiled with these options of the C compiler.
    ///
    /// # Panics
    /// As [`FakeCuda::new`].
    #[must_use]
    pub fn with(options: &[&str]) -> Self {
        let (dir, path) = compile(options);
        // SAFETY: the library runs nothing when it is loaded.
        let control = unsafe { libloading::Library::new(&path) }.unwrap();
        Self { control, path, dir }
    }

    /// The library.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the library is, as `libcuda.so.1`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The calls of a function after the next `after` fail with this code, `times` times.
    ///
    /// # Panics
    /// Never, for the fake's own source.
    pub fn fail(&self, function: &str, code: i32, after: i64, times: i64) {
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

    /// The GPU is lost: from now on, whatever works on it answers that an address was not mapped.
    pub fn lose_the_gpu(&self) {
        for function in [
            "cuCtxPushCurrent_v2",
            "cuMemcpyDtoHAsync_v2",
            "cuMemcpyHtoDAsync_v2",
            "cuMemcpy2DAsync_v2",
            "cuEventQuery",
        ] {
            self.fail(function, 700, 0, i64::MAX);
        }
    }

    /// How often a function was called.
    #[must_use]
    pub fn calls(&self, function: &str) -> i64 {
        self.ask(b"fake_calls\0", function)
    }

    /// What there is now of: violations, contexts, memories, imports, pins, streams, events.
    ///
    /// # Panics
    /// For anything else.
    #[must_use]
    pub fn get(&self, what: &str) -> i64 {
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

    /// Sets: hold (1: no copy is begun), `delay_us` (of each copy), dmabuf (0: not supported), and more in the source.
    ///
    /// # Panics
    /// Never, for the fake's own source.
    pub fn set(&self, what: &str, value: i64) {
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
    ///
    /// # Panics
    /// Never, for the fake's own source.
    #[must_use]
    pub fn depth(&self) -> i64 {
        // SAFETY: the type is the one of the fake's source.
        unsafe {
            self.control
                .get::<unsafe extern "C" fn() -> c_long>(b"fake_depth\0")
                .unwrap()()
        }
    }

    /// Everything was given back, and nothing was used that was not there.
    ///
    /// # Panics
    /// Where not.
    pub fn is_clean(&self) {
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
