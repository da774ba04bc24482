//! What must hold on every GPU.

use std::ops::Range;

use kvferry_cuda::{
    CopyError, DeviceError, DeviceUuid, DmaBufError, ExportError, GpuMemory, ImportError,
    PinnedMemory, Rows, Stream, plan_rows,
};
use kvferry_memory::{HostMemory, HugePages};

use super::{
    World,
    exporter::{Exporter, LEN, SEED},
    pattern, read, small_ring, soon, write,
};

pub(crate) fn devices_are_found_by_their_identity(world: &World) {
    let devices = world.library.devices().unwrap();
    assert!(!devices.is_empty());
    for device in &devices {
        println!(
            "GPU {} {} {}: PCI {}, NUMA node {:?}, {} MiB, dma-buf {}, GPUDirect RDMA {}, {}",
            device.ordinal(),
            device.uuid(),
            device.name(),
            device.pci_address(),
            device.numa_node(),
            device.memory_bytes() >> 20,
            device.has_dmabuf(),
            device.has_gpu_direct_rdma(),
            world.library.driver_version().unwrap(),
        );
        let found = world.library.device_by_uuid(device.uuid()).unwrap();
        assert_eq!(found.ordinal(), device.ordinal());
        assert_eq!(device.uuid().to_string().parse(), Ok(device.uuid()));
    }
    let nobody = DeviceUuid([0xee; 16]);
    match world.library.device_by_uuid(nobody) {
        Err(DeviceError::NoSuchUuid { uuid, present }) => {
            assert_eq!(uuid, nobody);
            assert_eq!(present.len(), devices.len());
            assert!(
                present[0].contains(&devices[0].uuid().to_string()),
                "{present:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    let count = devices.len() as u32;
    assert!(
        matches!(world.library.device(count), Err(DeviceError::NoSuchOrdinal { count: c, .. }) if c == count)
    );
}

/// 12 planes of 5 slots, at one distance; and the same with a crooked one.
fn layouts() -> [Vec<Range<u64>>; 3] {
    let slot = 3_u64;
    let plane = |at: u64| at * 70_000 + slot * 9_000..at * 70_000 + slot * 9_000 + 9_000;
    let regular: Vec<_> = (0..12).map(plane).collect();
    let mut crooked = regular.clone();
    crooked[5] = 123..4567;
    crooked.push(0..1);
    [regular, crooked, vec![1..900_000]]
}

pub(crate) fn strided_ranges_go_in_and_come_out(world: &World) {
    let context = world.context();
    let gpu = GpuMemory::allocate(&context, 1 << 20).unwrap();
    for (buffers, ahead) in [(2, 1), (3, 3), (8, 3)] {
        let staging = small_ring(&context, buffers, ahead);
        write(&staging, &gpu, vec![0..1 << 20], &pattern(1, 0..1 << 20));
        for (seed, ranges) in layouts().into_iter().enumerate() {
            let mut expected = pattern(1, 0..1 << 20);
            let all = || {
                ranges
                    .iter()
                    .map(|range| range.start as usize..range.end as usize)
            };
            let before: Vec<u8> = all().flat_map(|range| expected[range].to_vec()).collect();
            assert_eq!(read(&staging, &gpu, ranges.clone()), before);
            let bytes = pattern(seed as u64 + 100, 0..before.len() as u64);
            write(&staging, &gpu, ranges.clone(), &bytes);
            let mut rest = bytes.as_slice();
            for range in all() {
                let (now, later) = rest.split_at(range.len());
                expected[range].copy_from_slice(now);
                rest = later;
            }
            // Nothing but the ranges was written to.
            assert!(
                read(&staging, &gpu, vec![0..1 << 20]) == expected,
                "{ranges:?}"
            );
            write(&staging, &gpu, vec![0..1 << 20], &pattern(1, 0..1 << 20));
        }
        assert_eq!(staging.free_buffers(), buffers as usize);
    }
}

pub(crate) fn memory_that_is_there_is_pinned_and_copied_to_straight(world: &World) {
    let context = world.context();
    let gpu = GpuMemory::allocate(&context, 100_000).unwrap();
    let staging = small_ring(&context, 2, 1);
    write(&staging, &gpu, vec![0..100_000], &pattern(3, 0..100_000));
    let pool = HostMemory::pool("test-pool", 200_000, HugePages::Off).unwrap();
    let pinned = PinnedMemory::register(&context, pool.into()).unwrap();
    let stream = Stream::new(&context).unwrap();
    let rows = plan_rows(&[10..20, 50_000..60_000, 30..40], 0);
    assert_eq!(rows.len(), 3);
    let copy = stream
        .copy_from_device(&gpu, pinned.part(1_000..12_000).unwrap(), &rows)
        .unwrap();
    let part = copy.wait(soon()).unwrap();
    assert_eq!(part.range(), 1_000..12_000);
    let mut bytes = vec![0; 10_020];
    pinned.memory().read_at(1_000, &mut bytes).unwrap();
    let expected = [
        pattern(3, 10..20),
        pattern(3, 50_000..60_000),
        pattern(3, 30..40),
    ]
    .concat();
    assert!(bytes == expected);
    assert!(pinned.part(0..200_000_000).is_none() && pinned.part(5..5).is_none());
}

pub(crate) fn wrong_copies_are_refused(world: &World) {
    let context = world.context();
    let gpu = GpuMemory::allocate(&context, 4096).unwrap();
    let pinned = PinnedMemory::allocate(&context, 4096, HugePages::Off).unwrap();
    let stream = Stream::new(&context).unwrap();
    let good = Rows {
        device_offset: 0,
        device_stride: 64,
        host_offset: 0,
        host_stride: 32,
        row_bytes: 32,
        rows: 4,
    };
    let bad = [
        Rows {
            device_offset: 4096,
            ..good
        },
        Rows {
            device_offset: u64::MAX,
            ..good
        },
        Rows {
            device_stride: u64::MAX,
            ..good
        },
        Rows {
            device_stride: 16,
            ..good
        },
        Rows {
            host_stride: 31,
            ..good
        },
        Rows {
            host_offset: 4096 - 127,
            ..good
        },
        Rows { rows: 0, ..good },
        Rows {
            row_bytes: 0,
            ..good
        },
        Rows {
            row_bytes: u64::MAX,
            ..good
        },
        Rows {
            rows: u64::MAX,
            ..good
        },
    ];
    for rows in bad {
        let error = stream
            .copy_from_device(&gpu, pinned.part(0..4096).unwrap(), &[good, rows])
            .unwrap_err();
        assert!(
            matches!(error, CopyError::Invalid(_)),
            "{rows:?}: {error:?}"
        );
    }
    assert!(
        stream
            .copy_to_device(&gpu, pinned.part(0..4096).unwrap(), &[])
            .is_err()
    );
    let many = vec![good; kvferry_cuda::MAX_ROWS + 1];
    assert!(
        stream
            .copy_to_device(&gpu, pinned.part(0..4096).unwrap(), &many)
            .is_err()
    );
    stream
        .copy_to_device(&gpu, pinned.part(0..4096).unwrap(), &[good])
        .unwrap()
        .wait(soon())
        .unwrap();
}

pub(crate) fn another_processes_memory_is_read_and_written(world: &World) {
    let mut exporter = Exporter::start(world.path.as_deref());
    let context = world
        .library
        .device_by_uuid(exporter.uuid)
        .unwrap()
        .context()
        .unwrap();
    let staging = small_ring(&context, 4, 2);
    let import =
        |offset, len| GpuMemory::import(&context, &exporter.handle, exporter.offset + offset, len);
    let whole = import(0, LEN).unwrap();
    // The same handle again, with another span of it.
    let part = import(70_001, 100_000).unwrap();
    assert!(whole.is_imported() && matches!(whole.export(), Err(ExportError::Imported)));
    assert!(read(&staging, &whole, vec![0..LEN]) == pattern(SEED, 0..LEN));
    drop(whole);
    assert!(read(&staging, &part, vec![0..100_000]) == pattern(SEED, 70_001..170_001));
    drop(part);
    let whole = import(0, LEN).unwrap();
    write(&staging, &whole, vec![0..LEN], &pattern(8, 0..LEN));
    // An allocation may be larger than what was asked for, and not this much.
    for (offset, len) in [
        (1 << 40, 1),
        (0, 1 << 40),
        (0, 0),
        (u64::MAX - exporter.offset, 2),
    ] {
        let error = import(offset, len).unwrap_err();
        assert!(
            matches!(
                error,
                ImportError::OutOfRange { .. } | ImportError::NoRange { .. }
            ),
            "{error:?}"
        );
    }
    match whole.export_dmabuf(0..LEN) {
        Ok(export) => println!("an engine's memory is exported as dma-buf: {export:?}"),
        Err(error) => println!("an engine's memory: {error}"),
    }
    drop(whole);
    assert!(exporter.sees(8));
    exporter.end();
    // The process is gone, and its handle with it.
    let error = GpuMemory::import(&context, &exporter.handle, 0, 1).unwrap_err();
    println!("a dead engine's handle: {error}");
    assert!(
        matches!(
            error,
            ImportError::HandleVoid(_) | ImportError::CannotMap(_)
        ),
        "{error:?}"
    );
}

pub(crate) fn a_process_does_not_open_its_own_handle(world: &World) {
    let context = world.context();
    let gpu = GpuMemory::allocate(&context, 1 << 20).unwrap();
    let (handle, offset) = gpu.export().unwrap();
    let error = GpuMemory::import(&context, &handle, offset, 1 << 20).unwrap_err();
    println!("its own handle: {error}");
    // Drivers do not agree on the number; that of the reference is OwnProcess.
    let refused = matches!(
        error,
        ImportError::OwnProcess(_) | ImportError::HandleVoid(_) | ImportError::CannotMap(_)
    );
    assert!(refused, "{error:?}");
    // A handle of nobody's.
    let error =
        GpuMemory::import(&context, &kvferry_cuda::IpcHandle([0x5a; 64]), 0, 1).unwrap_err();
    println!("nobody's handle: {error}");
    assert!(!context.is_lost());
}

pub(crate) fn a_dmabuf_is_exported_or_it_says_what_is_lacking(world: &World) {
    let context = world.context();
    let gpu = GpuMemory::allocate(&context, 4 << 20).unwrap();
    match gpu.export_dmabuf(5_000..1_000_000) {
        Ok(export) => {
            assert!(context.device().has_dmabuf());
            assert_eq!(
                (export.address, export.len),
                (gpu.device_address() + 5_000, 995_000)
            );
            println!("dma-buf: {export:?}");
        }
        Err(error @ (DmaBufError::OldDriver | DmaBufError::Unsupported { .. })) => {
            assert!(!context.device().has_dmabuf());
            println!("no dma-buf: {error}");
        }
        // Containers may be denied what the driver could do.
        Err(error @ (DmaBufError::Refused { .. } | DmaBufError::Failed(_))) => {
            println!("no dma-buf here: {error}")
        }
        Err(error) => panic!("{error}"),
    }
    for range in [0..(4 << 20) + 1, 5..5, u64::MAX - 1..u64::MAX] {
        assert!(matches!(
            gpu.export_dmabuf(range),
            Err(DmaBufError::OutOfRange { .. })
        ));
    }
}

pub(crate) fn threads_share_a_ring(world: &World) {
    let context = world.context();
    let staging = small_ring(&context, 4, 2);
    std::thread::scope(|scope| {
        for seed in 0..4_u64 {
            let (context, staging) = (&context, &staging);
            scope.spawn(move || {
                let gpu = GpuMemory::allocate(context, 300_000).unwrap();
                for round in 0..3 {
                    let bytes = pattern(seed * 10 + round, 0..300_000);
                    write(staging, &gpu, vec![0..300_000], &bytes);
                    assert!(read(staging, &gpu, vec![0..300_000]) == bytes);
                }
            });
        }
    });
    assert_eq!(staging.free_buffers(), 4);
}
