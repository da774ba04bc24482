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
