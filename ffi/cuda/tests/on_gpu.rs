//! The checks on a real GPU. Without one each says why, and passes.

#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, which clippy does not take for tests
#![allow(clippy::single_range_in_vec_init)] // a transfer of one range is meant

mod common;

use common::{World, checks, exporter};
use kvferry_cuda::LoadError;

fn on_gpu(check: impl FnOnce(&World)) {
    match World::open(None) {
        Ok(world) => check(&world),
        Err(error @ LoadError::Library { .. }) => println!("skipped: no libcuda: {error}"),
        Err(error) => println!("skipped: no GPU: {error}"),
    }
}

#[test]
fn exporter_child() {
    exporter::run_as_child();
}

#[test]
fn a_machine_without_libcuda_says_so() {
    let Err(error @ LoadError::Library { .. }) = World::open(None).map(drop) else {
        println!("skipped: there is a libcuda");
        return;
    };
    let text = error.to_string();
    assert!(text.starts_with("cannot load libcuda.so.1: "), "{text}");
    assert!(text.contains("driver") && !text.contains('\n'), "{text}");
}

macro_rules! checks {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            on_gpu(checks::$name);
        }
    )*};
}

#[test]
fn staging_speed_is_shown() {
    on_gpu(|world| {
        const BYTES: u64 = 256 << 20;
        let context = world.context();
        let gpu = kvferry_cuda::GpuMemory::allocate(&context, BYTES).unwrap();
        let staging = kvferry_cuda::Staging::new(&context, Default::default()).unwrap();
        // One range, and planes of 16 KiB in two orders: with a regular stride, and without.
        let plane = |at: u64| at * (16 << 10)..(at + 1) * (16 << 10);
        let planes = BYTES / (16 << 10);
        let every_other: Vec<_> = (0..planes / 2).map(|at| plane(at * 2)).collect();
        let scattered: Vec<_> = (0..planes / 2)
            .map(|at| plane(at * 2_654_435_761 % planes))
            .collect();
        for (what, ranges) in [
            ("one range", vec![0..BYTES]),
            ("regular", every_other),
            ("scattered", scattered),
        ] {
            for _ in 0..2 {
                let started = std::time::Instant::now();
                let mut outbound = staging.read(&gpu, ranges.clone()).unwrap();
                let mut bytes = 0;
                while let Some(chunk) = outbound.next(common::soon()).unwrap() {
                    bytes += chunk.range().end - chunk.range().start;
                }
                let rate = bytes as f64 / started.elapsed().as_secs_f64() / 1e9;
                println!("from the GPU, {what}: {rate:.1} GB/s");
            }
        }
    });
}

checks! {
    devices_are_found_by_their_identity
    strided_ranges_go_in_and_come_out
    memory_that_is_there_is_pinned_and_copied_to_straight
    wrong_copies_are_refused
    another_processes_memory_is_read_and_written
    a_process_does_not_open_its_own_handle
    a_dmabuf_is_exported_or_it_says_what_is_lacking
    threads_share_a_ring
}
