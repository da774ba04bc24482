//! The layer on a fake libcuda (`../fake/fake_cuda.c`), which does what no GPU does on demand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests, which clippy does not take for tests
#![allow(clippy::single_range_in_vec_init)] // a transfer of one range is meant

#[path = "../common/mod.rs"]
mod common;
mod errors;
mod fake;
mod libraries;
mod ownership;
mod storm;
mod transfers;

use common::{checks, exporter};
use fake::Fake;

#[test]
fn exporter_child() {
    exporter::run_as_child();
}

macro_rules! checks {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            let fake = Fake::new();
            fake.set("delay_us", 50);
            checks::$name(&fake.world);
            fake.is_clean();
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
