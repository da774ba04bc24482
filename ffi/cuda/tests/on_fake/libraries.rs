//! Loading: what is there, what is missing, what is older.

use std::path::Path;

use kvferry_cuda::{DmaBufError, GpuMemory, Library, LoadError, Status};

use crate::fake::{Fake, library};

#[test]
fn a_library_that_is_not_there_is_named() {
    let error = Library::load_from(Path::new("/nonexistent/libcuda.so.1")).unwrap_err();
    assert!(
        matches!(&error, LoadError::Library { name, .. } if name == "/nonexistent/libcuda.so.1"),
        "{error:?}"
    );
    assert_eq!(error.to_string().lines().count(), 1);
}

#[test]
fn a_library_that_is_no_libcuda_is_told_by_what_it_lacks() {
    let (_dir, path) = library(&["-DEMPTY"]);
    let error = Library::load_from(&path).unwrap_err();
    assert!(
        matches!(
            error,
            LoadError::Symbol {
                symbol: "cuInit",
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("update the driver"), "{error}");
}

#[test]
fn an_older_driver_lacks_dmabufs_and_nothing_else() {
    let fake = Fake::with(&["-DWITHOUT_OPTIONAL"]);
    assert!(!fake.world.library.has_dmabuf());
    let device = fake.world.library.device(1).unwrap();
    // From cuDeviceGetUuid, and not its successor.
    assert_eq!(device.uuid().0, [0xa1; 16]);
    assert!(!device.has_dmabuf());
    let context = device.context().unwrap();
    let gpu = GpuMemory::allocate(&context, 4096).unwrap();
    let error = gpu.export_dmabuf(0..4096).unwrap_err();
    assert!(matches!(error, DmaBufError::OldDriver), "{error:?}");
    assert!(error.to_string().contains("CUDA 11.7"), "{error}");
    drop((gpu, context));
    fake.is_clean();
}

#[test]
fn the_newer_function_gives_the_identity_where_it_is_there() {
    let fake = Fake::new();
    let device = fake.world.library.device(1).unwrap();
    assert_eq!(
        device.uuid().to_string(),
        "GPU-b1b1b1b1-b1b1-b1b1-b1b1-b1b1b1b1b1b1"
    );
    assert_eq!(
        (device.name(), device.pci_address(), device.numa_node()),
        ("Fake 1", "00fa:e1:00.0", None)
    );
    assert_eq!(
        fake.world.library.driver_version().unwrap().to_string(),
        "CUDA 12.4"
    );
}

#[test]
fn no_device_and_a_stub_are_told_apart() {
    let (_dir, path) = library(&[]);
    for (code, status) in [
        (100, Status::NoDevice),
        (34, Status::StubLibrary),
        (803, Status::SystemDriverMismatch),
    ] {
        // Loading initialises, so the failure is set in the library before the layer loads it.
        // SAFETY: the fake runs nothing when it is loaded.
        let control = unsafe { libloading::Library::new(&path) }.unwrap();
        // SAFETY: the type is the one of the fake's source; the name is a constant.
        unsafe {
            let fail = control
                .get::<unsafe extern "C" fn(
                    *const std::ffi::c_char,
                    i32,
                    std::ffi::c_long,
                    std::ffi::c_long,
                )>(b"fake_fail\0")
                .unwrap();
            fail(c"cuInit".as_ptr(), code, 0, 1);
        }
        let error = Library::load_from(&path).unwrap_err();
        match (&error, status) {
            (LoadError::NoDevice(call), Status::NoDevice) | (LoadError::Init(call), _) => {
                assert_eq!(call.status, status);
            }
            _ => panic!("{error:?}"),
        }
    }
}
