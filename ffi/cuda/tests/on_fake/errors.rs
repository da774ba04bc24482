//! What the driver answers, as what the caller is to do.

use std::{fs::File, os::unix::fs::FileExt};

use kvferry_cuda::{
    AllocateError, ContextError, CopyError, DmaBufError, FlushError, GpuMemory, ImportError,
    IpcHandle, PinError, PinnedMemory, Staging, StagingError, StagingOptions, Status, Stream,
};
use kvferry_memory::HugePages;

use crate::{
    common::{exporter::Exporter, pattern, small_ring, soon, write},
    fake::Fake,
};

/// Is it this error?
type Is<E> = fn(&E) -> bool;

#[test]
fn a_context_that_cannot_be_had_says_why() {
    let fake = Fake::new();
    let device = fake.world.library.device(0).unwrap();
    for (code, is) in [
        (
            2,
            (|error| matches!(error, ContextError::OutOfMemory { .. }))
                as fn(&ContextError) -> bool,
        ),
        (46, |error| {
            matches!(error, ContextError::Unavailable { .. })
        }),
        (999, |error| matches!(error, ContextError::Failed { .. })),
    ] {
        fake.fail("cuDevicePrimaryCtxRetain", code, 0, 1);
        let error = device.context().unwrap_err();
        assert!(is(&error), "{error:?}");
        assert!(error.to_string().contains("GPU-b0b0b0b0"), "{error}");
    }
    fake.is_clean();
}

#[test]
fn memory_that_is_not_there_is_not_allocated() {
    let fake = Fake::new();
    let context = fake.world.context();
    assert!(matches!(
        GpuMemory::allocate(&context, 0),
        Err(AllocateError::Empty)
    ));
    let error = GpuMemory::allocate(&context, 1 << 50).unwrap_err();
    assert!(
        matches!(error, AllocateError::OutOfMemory { bytes, .. } if bytes == 1 << 50),
        "{error:?}"
    );
    drop(context);
    fake.is_clean();
}

#[test]
fn an_engines_handle_is_refused_with_what_to_do() {
    let fake = Fake::new();
    let context = fake.world.context();
    let cases: [(i32, Is<ImportError>); 7] = [
        (400, |error| matches!(error, ImportError::HandleVoid(_))),
        (201, |error| matches!(error, ImportError::OwnProcess(_))),
        (208, |error| matches!(error, ImportError::AlreadyOpen(_))),
        (205, |error| matches!(error, ImportError::CannotMap(_))),
        (217, |error| {
            matches!(error, ImportError::NoPeerAccess { .. })
        }),
        (711, |error| {
            matches!(error, ImportError::NoPeerAccess { .. })
        }),
        (
            4711,
            |error| matches!(error, ImportError::Failed(call) if call.status == Status::Other(4711)),
        ),
    ];
    for (code, is) in cases {
        fake.fail("cuIpcOpenMemHandle_v2", code, 0, 1);
        let error = GpuMemory::import(&context, &IpcHandle([0; 64]), 0, 1).unwrap_err();
        assert!(is(&error), "{error:?}");
        println!("{error}");
    }
    // The driver's own words, where we have none.
    fake.fail("cuIpcOpenMemHandle_v2", 4711, 0, 1);
    let error = GpuMemory::import(&context, &IpcHandle([0; 64]), 0, 1).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("CUDA_ERROR_OF_THE_FAKE, the fake says so"),
        "{error}"
    );
    drop(context);
    fake.is_clean();
}

#[test]
fn what_was_opened_is_closed_whatever_comes_after() {
    let fake = Fake::new();
    let exporter = Exporter::start(fake.world.path.as_deref());
    let context = fake.world.context();
    for function in ["cuMemGetAddressRange_v2", "cuPointerGetAttribute"] {
        fake.fail(function, 999, 0, 1);
        let error = GpuMemory::import(&context, &exporter.handle, 0, 1).unwrap_err();
        assert!(matches!(error, ImportError::Failed(_)), "{error:?}");
    }
    assert!(GpuMemory::import(&context, &exporter.handle, 0, 1 << 40).is_err());
    // The engine said the wrong device.
    let other = fake.world.library.device(1).unwrap().context().unwrap();
    let error = GpuMemory::import(&other, &exporter.handle, 0, 1).unwrap_err();
    assert!(
        matches!(error, ImportError::OtherDevice { found: 0, .. }),
        "{error:?}"
    );
    assert_eq!(fake.calls("cuIpcOpenMemHandle_v2"), 4);
    assert_eq!(fake.calls("cuIpcCloseMemHandle"), 4);
    drop((context, other));
    fake.is_clean();
}

#[test]
fn memory_is_pinned_once() {
    let fake = Fake::new();
    let context = fake.world.context();
    let pinned = PinnedMemory::allocate(&context, 8192, HugePages::Off).unwrap();
    let again = PinnedMemory::register(&context, pinned.memory().clone());
    assert!(
        matches!(again, Err(PinError::AlreadyPinned(_))),
        "{again:?}"
    );
    fake.fail("cuMemHostRegister_v2", 2, 0, 1);
    let full = PinnedMemory::allocate(&context, 8192, HugePages::Off);
    assert!(
        matches!(full, Err(PinError::OutOfMemory { bytes: 8192, .. })),
        "{full:?}"
    );
    drop((pinned, context));
    fake.is_clean();
}

#[test]
fn a_ring_has_bounds() {
    let fake = Fake::new();
    let context = fake.world.context();
    let good = StagingOptions {
        buffers: 2,
        buffer_bytes: 8192,
        ahead: 1,
        hugepages: HugePages::Off,
    };
    for bad in [
        StagingOptions { buffers: 1, ..good },
        StagingOptions {
            buffers: 100_000,
            ..good
        },
        StagingOptions {
            buffer_bytes: 0,
            ..good
        },
        StagingOptions {
            buffer_bytes: 5000,
            ..good
        },
        StagingOptions {
            buffer_bytes: 1 << 40,
            ..good
        },
        StagingOptions { ahead: 0, ..good },
        StagingOptions { ahead: 3, ..good },
    ] {
        assert!(
            matches!(Staging::new(&context, bad), Err(StagingError::Options(_))),
            "{bad:?}"
        );
    }
    for function in ["cuMemHostRegister_v2", "cuStreamCreate"] {
        fake.fail(function, 2, 0, 1);
        assert!(Staging::new(&context, good).is_err());
    }
    let staging = Staging::new(&context, good).unwrap();
    let gpu = GpuMemory::allocate(&context, 4096).unwrap();
    for ranges in [vec![], vec![0..4097], vec![7..7]] {
        assert!(matches!(
            staging.read(&gpu, ranges),
            Err(StagingError::Ranges { memory: 4096, .. })
        ));
    }
    drop((staging, gpu, context));
    fake.is_clean();
}

#[test]
fn memory_of_another_context_is_refused() {
    let fake = Fake::new();
    let context = fake.world.context();
    let other = fake.world.library.device(1).unwrap().context().unwrap();
    let staging = small_ring(&context, 2, 1);
    let gpu = GpuMemory::allocate(&other, 4096).unwrap();
    assert!(staging.read(&gpu, vec![0..1]).is_err());
    let stream = Stream::new(&other).unwrap();
    let here = GpuMemory::allocate(&context, 4096).unwrap();
    let pinned = PinnedMemory::allocate(&context, 4096, HugePages::Off).unwrap();
    let rows = kvferry_cuda::plan_rows(&[0..1], 0);
    let error = stream
        .copy_from_device(&here, pinned.part(0..1).unwrap(), &rows)
        .unwrap_err();
    assert!(matches!(error, CopyError::Invalid(_)), "{error:?}");
    drop((staging, gpu, stream, here, pinned, context, other));
    fake.is_clean();
}

#[test]
fn a_gpu_that_failed_is_lost_for_good() {
    let fake = Fake::new();
    let context = fake.world.context();
    let staging = small_ring(&context, 2, 1);
    let gpu = GpuMemory::allocate(&context, 4096).unwrap();
    let mut outbound = staging.read(&gpu, vec![0..4096]).unwrap();
    fake.fail("cuEventQuery", 700, 0, 1);
    let error = outbound.next(soon()).unwrap_err();
    assert!(
        matches!(&error, StagingError::Copy(CopyError::GpuLost(call)) if call.status == Status::IllegalAddress)
    );
    assert!(error.to_string().contains("restart the agent"), "{error}");
    assert!(context.is_lost());
    assert!(matches!(outbound.next(soon()), Err(StagingError::Ended)));
}

#[test]
fn rdma_writes_are_flushed_where_the_machine_does_not_order_them() {
    let fake = Fake::new();
    let device = || fake.world.library.device(0).unwrap().context().unwrap();
    let context = device();
    assert!(context.can_flush_rdma_writes());
    context.flush_rdma_writes().unwrap();
    assert_eq!(fake.calls("cuFlushGPUDirectRDMAWrites"), 1);
    fake.fail("cuFlushGPUDirectRDMAWrites", 999, 0, 1);
    assert!(matches!(
        context.flush_rdma_writes(),
        Err(FlushError::Failed(_))
    ));
    fake.set("flush_options", 2);
    let context = device();
    assert!(!context.can_flush_rdma_writes());
    assert!(matches!(
        context.flush_rdma_writes(),
        Err(FlushError::Unsupported { .. })
    ));
    fake.set("ordering", 100);
    let context = device();
    assert!(context.can_flush_rdma_writes());
    context.flush_rdma_writes().unwrap();
    assert_eq!(fake.calls("cuFlushGPUDirectRDMAWrites"), 2);
}

#[test]
fn peer_memory_is_named_by_its_device_address() {
    let fake = Fake::new();
    let gpu = GpuMemory::allocate(&fake.world.context(), 5000).unwrap();
    let (address, len) = kvferry_ibverbs::DeviceMemory::as_raw_parts(gpu.as_ref());
    assert_eq!((address as u64, len), (gpu.device_address(), 5000));
}

#[test]
fn a_dmabuf_says_what_is_lacking_and_begins_on_a_page() {
    let fake = Fake::new();
    let context = fake.world.context();
    let gpu = GpuMemory::allocate(&context, 100_000).unwrap();
    write(
        &small_ring(&context, 2, 1),
        &gpu,
        vec![0..100_000],
        &pattern(4, 0..100_000),
    );
    let export = gpu.export_dmabuf(70_001..70_101).unwrap();
    assert_eq!(
        (export.len, export.address),
        (100, gpu.device_address() + 70_001)
    );
    let mut bytes = vec![0; 100];
    File::from(export.fd)
        .read_exact_at(&mut bytes, export.offset)
        .unwrap();
    assert!(bytes == pattern(4, 70_001..70_101));
    for code in [801, 1] {
        // With the flag for PCIe, and without.
        fake.fail("cuMemGetHandleForAddressRange", code, 0, 2);
        let error = gpu.export_dmabuf(0..1).unwrap_err();
        assert!(
            matches!(
                error,
                DmaBufError::Refused {
                    imported: false,
                    ..
                }
            ),
            "{error:?}"
        );
    }
    let calls = fake.calls("cuMemGetHandleForAddressRange");
    gpu.export_dmabuf(0..1).unwrap();
    assert_eq!(fake.calls("cuMemGetHandleForAddressRange"), calls + 2);
    // A machine where the flag makes the difference.
    fake.set("coherent", 1);
    gpu.export_dmabuf(0..1).unwrap();
    assert_eq!(fake.calls("cuMemGetHandleForAddressRange"), calls + 3);
    fake.set("dmabuf", 0);
    let device = fake.world.library.device(1).unwrap();
    assert!(!device.has_dmabuf());
    let context = device.context().unwrap();
    let other = GpuMemory::allocate(&context, 4096).unwrap();
    let error = other.export_dmabuf(0..4096).unwrap_err();
    assert!(
        matches!(error, DmaBufError::Unsupported { .. }),
        "{error:?}"
    );
    println!("{error}");
}
