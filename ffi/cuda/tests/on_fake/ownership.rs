//! A copy's memory is the copy's until the GPU is done with it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kvferry_cuda::{Context, CopyError, GpuMemory, PinnedMemory, Stream, lost_bytes, plan_rows};
use kvferry_memory::HugePages;

use crate::{common::soon, fake::Fake};

struct Sides {
    context: Arc<Context>,
    stream: Arc<Stream>,
    gpu: Arc<GpuMemory>,
    pinned: Arc<PinnedMemory>,
}

fn sides(fake: &Fake) -> Sides {
    let context = fake.world.context();
    Sides {
        stream: Stream::new(&context).unwrap(),
        gpu: GpuMemory::allocate(&context, 8192).unwrap(),
        pinned: PinnedMemory::allocate(&context, 8192, HugePages::Off).unwrap(),
        context,
    }
}

fn now() -> Instant {
    Instant::now()
}

#[test]
fn a_dropped_copy_keeps_both_sides_until_it_is_done() {
    let fake = Fake::new();
    fake.set("hold", 1);
    let Sides {
        context,
        stream,
        gpu,
        pinned,
    } = sides(&fake);
    let rows = plan_rows(&[0..8192], 0);
    let copy = stream
        .copy_from_device(&gpu, pinned.part(0..8192).unwrap(), &rows)
        .unwrap();
    assert!(!copy.is_done().unwrap());
    drop((copy, gpu, pinned));
    assert_eq!(
        (fake.get("memories"), fake.get("pins"), fake.get("events")),
        (1, 1, 1)
    );
    fake.set("hold", 0);
    // The stream waits for it.
    drop((stream, context));
    fake.is_clean();
}

#[test]
fn a_copy_that_is_late_gives_nothing_back() {
    let fake = Fake::new();
    fake.set("hold", 1);
    let Sides {
        context,
        stream,
        gpu,
        pinned,
    } = sides(&fake);
    let rows = plan_rows(&[0..100], 0);
    let copy = stream
        .copy_to_device(&gpu, pinned.part(0..100).unwrap(), &rows)
        .unwrap();
    let error = copy.wait(now() + Duration::from_millis(20)).unwrap_err();
    assert!(matches!(error, CopyError::TimedOut), "{error:?}");
    drop((gpu, pinned));
    assert_eq!((fake.get("memories"), fake.get("pins")), (1, 1));
    fake.set("hold", 0);
    drop((stream, context));
    fake.is_clean();
}

#[test]
fn pieces_before_one_that_fails_are_waited_for() {
    let fake = Fake::new();
    fake.set("hold", 1);
    let Sides {
        context,
        stream,
        gpu,
        pinned,
    } = sides(&fake);
    let rows = plan_rows(&[0..10, 100..120, 200..230], 0);
    fake.fail("cuMemcpyDtoHAsync_v2", 999, 2, 1);
    let error = stream
        .copy_from_device(&gpu, pinned.part(0..100).unwrap(), &rows)
        .unwrap_err();
    assert!(matches!(error, CopyError::Failed(_)), "{error:?}");
    drop((gpu, pinned));
    // Two pieces are under way.
    assert_eq!((fake.get("memories"), fake.get("pins")), (1, 1));
    fake.set("hold", 0);
    drop((stream, context));
    fake.is_clean();
}

#[test]
fn what_is_done_is_freed_by_the_next_copy() {
    let fake = Fake::new();
    let Sides {
        context,
        stream,
        gpu,
        pinned,
    } = sides(&fake);
    let rows = plan_rows(&[0..100], 0);
    let copy = || {
        stream
            .copy_to_device(&gpu, pinned.part(0..100).unwrap(), &rows)
            .unwrap()
    };
    for _ in 0..50 {
        drop(copy());
    }
    copy().wait(soon()).unwrap();
    copy().wait(soon()).unwrap();
    assert_eq!(fake.get("events"), 0);
    drop((stream, gpu, pinned, context));
    fake.is_clean();
}

#[test]
fn memory_whose_copy_never_ends_is_never_freed() {
    let fake = Fake::new();
    let Sides {
        context,
        stream,
        gpu,
        pinned,
    } = sides(&fake);
    let before = lost_bytes();
    let rows = plan_rows(&[0..8192], 0);
    // The mark after the copy is not set: nobody can know when it ends. Sticky, so that the drop need not wait.
    fake.fail("cuEventRecord", 719, 0, 1);
    let error = stream
        .copy_from_device(&gpu, pinned.part(0..8192).unwrap(), &rows)
        .unwrap_err();
    assert!(matches!(error, CopyError::GpuLost(_)), "{error:?}");
    drop((stream, gpu, pinned, context));
    assert_eq!((fake.get("memories"), fake.get("pins")), (1, 1));
    assert!(lost_bytes() >= before + 8192);
    assert_eq!(fake.get("violations"), 0);
}

#[test]
fn a_stream_whose_gpu_hangs_is_let_go_and_its_memory_is_not() {
    let fake = Fake::new();
    fake.set("hold", 1);
    let Sides {
        context,
        stream,
        gpu,
        pinned,
    } = sides(&fake);
    let rows = plan_rows(&[0..8192], 0);
    let before = lost_bytes();
    drop(
        stream
            .copy_from_device(&gpu, pinned.part(0..8192).unwrap(), &rows)
            .unwrap(),
    );
    drop((stream, gpu, pinned, context));
    assert!(lost_bytes() >= before + 8192);
    assert_eq!(
        (fake.get("memories"), fake.get("pins"), fake.get("streams")),
        (1, 1, 0)
    );
    // The GPU comes back, and writes to what is still there.
    fake.set("hold", 0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(fake.get("violations"), 0);
}

#[test]
fn every_call_leaves_the_thread_as_it_was() {
    let fake = Fake::new();
    let other = fake.world.library.device(1).unwrap().context().unwrap();
    let Sides {
        context,
        stream,
        gpu,
        pinned,
    } = sides(&fake);
    let far = GpuMemory::allocate(&other, 64).unwrap();
    let rows = plan_rows(&[0..64], 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A thread that never saw a context.
            let copy = stream
                .copy_to_device(&gpu, pinned.part(0..64).unwrap(), &rows)
                .unwrap();
            copy.wait(soon()).unwrap();
            assert_eq!(fake.depth(), 0);
        });
    });
    fake.fail("cuMemcpyHtoDAsync_v2", 999, 0, 1);
    assert!(
        stream
            .copy_to_device(&gpu, pinned.part(0..64).unwrap(), &rows)
            .is_err()
    );
    assert_eq!(fake.depth(), 0);
    drop((stream, gpu, pinned, far, context, other));
    assert_eq!(
        fake.calls("cuCtxPushCurrent_v2"),
        fake.calls("cuCtxPopCurrent_v2")
    );
    fake.is_clean();
}
