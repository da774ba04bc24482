//! The ring: order, overlap, bounds, and who owns which buffer when.

use std::time::{Duration, Instant};

use kvferry_cuda::{GpuMemory, StagingError};

use crate::{
    common::{pattern, read, small_ring, soon, write},
    fake::Fake,
};

const BUFFER: u64 = 16 << 10;

fn at_once() -> Instant {
    Instant::now()
}

#[test]
fn copies_run_ahead_of_the_consumer_and_no_further_than_allowed() {
    let fake = Fake::new();
    let context = fake.world.context();
    let staging = small_ring(&context, 6, 3);
    let gpu = GpuMemory::allocate(&context, 10 * BUFFER).unwrap();
    let mut outbound = staging.read(&gpu, vec![0..10 * BUFFER]).unwrap();
    assert_eq!(fake.calls("cuMemcpyDtoHAsync_v2"), 0);
    let first = outbound.next(soon()).unwrap().unwrap();
    // While the consumer has the first, two more are under way.
    assert_eq!(fake.calls("cuMemcpyDtoHAsync_v2"), 3);
    assert_eq!(staging.free_buffers(), 3);
    drop(first);
    let _second = outbound.next(soon()).unwrap().unwrap();
    assert_eq!(fake.calls("cuMemcpyDtoHAsync_v2"), 4);
    assert_eq!(outbound.left(), 8 * BUFFER);
    drop((outbound, _second, staging, gpu, context));
    fake.is_clean();
}

#[test]
fn regular_planes_are_one_call_each_buffer() {
    let fake = Fake::new();
    let context = fake.world.context();
    let staging = small_ring(&context, 2, 1);
    let gpu = GpuMemory::allocate(&context, 1 << 20).unwrap();
    // 64 planes of 512 bytes are two buffers' worth.
    let planes: Vec<_> = (0..64)
        .map(|plane| plane * 10_000..plane * 10_000 + 512)
        .collect();
    read(&staging, &gpu, planes);
    assert_eq!(fake.calls("cuMemcpy2DAsync_v2"), 2);
    assert_eq!(fake.calls("cuMemcpyDtoHAsync_v2"), 0);
    // A stride the device does not do: 1 GiB is the fake's bound, and its memory is smaller; so by the plan alone.
    let far: Vec<_> = [0..1, (1 << 31)..(1 << 31) + 1].to_vec();
    assert_eq!(kvferry_cuda::plan_rows(&far, 1 << 30).len(), 2);
    drop((staging, gpu, context));
    fake.is_clean();
}

#[test]
fn a_consumer_that_holds_every_buffer_is_told() {
    let fake = Fake::new();
    let context = fake.world.context();
    let staging = small_ring(&context, 2, 1);
    let gpu = GpuMemory::allocate(&context, 4 * BUFFER).unwrap();
    write(
        &staging,
        &gpu,
        vec![0..4 * BUFFER],
        &pattern(5, 0..4 * BUFFER),
    );
    let mut outbound = staging.read(&gpu, vec![0..4 * BUFFER]).unwrap();
    let first = outbound.next(soon()).unwrap().unwrap();
    let second = outbound.next(soon()).unwrap().unwrap();
    let error = outbound
        .next(Instant::now() + Duration::from_millis(5))
        .unwrap_err();
    assert!(
        matches!(error, StagingError::NoBuffer { buffers: 2 }),
        "{error:?}"
    );
    // That is no end: with a buffer given back it goes on.
    drop(first);
    let third = outbound.next(soon()).unwrap().unwrap();
    let mut bytes = vec![0; BUFFER as usize];
    third
        .memory()
        .read_at(third.range().start, &mut bytes)
        .unwrap();
    assert!(bytes == pattern(5, 2 * BUFFER..3 * BUFFER));
    drop((second, third, outbound, staging, gpu, context));
    fake.is_clean();
}

#[test]
fn a_late_copy_ends_the_transfer_and_its_buffer_comes_back_later() {
    let fake = Fake::new();
    let context = fake.world.context();
    let staging = small_ring(&context, 2, 2);
    let gpu = GpuMemory::allocate(&context, 4 * BUFFER).unwrap();
    fake.set("hold", 1);
    let mut outbound = staging.read(&gpu, vec![0..4 * BUFFER]).unwrap();
    let error = outbound
        .next(Instant::now() + Duration::from_millis(5))
        .unwrap_err();
    assert!(matches!(error, StagingError::Copy(_)), "{error:?}");
    assert!(matches!(outbound.next(soon()), Err(StagingError::Ended)));
    drop(outbound);
    // The GPU may still write to both buffers: nobody gets them.
    assert_eq!(staging.free_buffers(), 0);
    let mut other = staging.write(&gpu, vec![0..1]).unwrap();
    assert!(matches!(
        other.next_buffer(at_once()),
        Err(StagingError::NoBuffer { .. })
    ));
    fake.set("hold", 0);
    // And then they come by themselves.
    let fill = other.next_buffer(soon()).unwrap().unwrap();
    assert_eq!(fill.range().end - fill.range().start, 1);
    drop((fill, other, staging, gpu, context));
    fake.is_clean();
}

#[test]
fn buffers_are_filled_together_and_handed_in_in_any_order() {
    let fake = Fake::new();
    let context = fake.world.context();
    let staging = small_ring(&context, 4, 2);
    let gpu = GpuMemory::allocate(&context, 4 * BUFFER).unwrap();
    let ranges = vec![0..3 * BUFFER - 5, 3 * BUFFER..3 * BUFFER + 1];
    let expected = pattern(6, 0..3 * BUFFER - 4);
    let mut inbound = staging.write(&gpu, ranges.clone()).unwrap();
    let mut fills = Vec::new();
    while let Some(fill) = inbound.next_buffer(soon()).unwrap() {
        fills.push(fill);
    }
    assert_eq!(fills.len(), 3);
    for (at, fill) in fills.into_iter().enumerate().rev() {
        let range = fill.range();
        let from = at * BUFFER as usize;
        fill.memory()
            .write_at(
                range.start,
                &expected[from..from + (range.end - range.start) as usize],
            )
            .unwrap();
        inbound.submit(fill).unwrap();
    }
    inbound.finish(soon()).unwrap();
    assert!(read(&staging, &gpu, ranges) == expected);
    drop((staging, gpu, context));
    fake.is_clean();
}

#[test]
fn a_transfer_is_settled_when_it_says_so_and_not_before() {
    let fake = Fake::new();
    let context = fake.world.context();
    let staging = small_ring(&context, 2, 1);
    let gpu = GpuMemory::allocate(&context, 4 * BUFFER).unwrap();
    fake.set("hold", 1);
    let mut inbound = staging.write(&gpu, vec![0..4 * BUFFER]).unwrap();
    let fill = inbound.next_buffer(soon()).unwrap().unwrap();
    inbound.submit(fill).unwrap();
    assert!(inbound.settle(at_once()).is_err());
    assert!(
        inbound
            .settle(Instant::now() + Duration::from_millis(5))
            .is_err()
    );
    // It was given up: nothing more is begun.
    assert!(matches!(
        inbound.next_buffer(soon()),
        Err(StagingError::Ended)
    ));
    fake.set("hold", 0);
    inbound.settle(soon()).unwrap();
    assert_eq!(fake.get("events"), 0);
    drop(inbound);
    // A submit that fails half-way is waited for as well.
    let planes: Vec<_> = [0..10, 100..120, 300..301].to_vec();
    let mut inbound = staging.write(&gpu, planes).unwrap();
    let fill = inbound.next_buffer(soon()).unwrap().unwrap();
    fake.set("hold", 1);
    fake.fail("cuMemcpyHtoDAsync_v2", 999, 1, 1);
    assert!(inbound.submit(fill).is_err());
    assert!(inbound.settle(at_once()).is_err());
    fake.set("hold", 0);
    inbound.settle(soon()).unwrap();
    assert_eq!(fake.get("events"), 0);
    drop((inbound, staging, gpu, context));
    fake.is_clean();
}

#[test]
fn a_transfer_that_is_not_complete_says_how_much_is_missing() {
    let fake = Fake::new();
    let context = fake.world.context();
    let staging = small_ring(&context, 3, 1);
    let gpu = GpuMemory::allocate(&context, 4 * BUFFER).unwrap();
    let mut inbound = staging.write(&gpu, vec![0..3 * BUFFER]).unwrap();
    let mut other = staging.write(&gpu, vec![0..1]).unwrap();
    let fill = inbound.next_buffer(soon()).unwrap().unwrap();
    let foreign = other.next_buffer(soon()).unwrap().unwrap();
    assert!(matches!(
        inbound.submit(foreign),
        Err(StagingError::ForeignBuffer)
    ));
    inbound.submit(fill).unwrap();
    drop(inbound.next_buffer(soon()).unwrap());
    let error = inbound.finish(soon()).unwrap_err();
    assert!(
        matches!(error, StagingError::Incomplete { bytes } if bytes == 2 * BUFFER),
        "{error:?}"
    );
    drop((other, staging, gpu, context));
    fake.is_clean();
}
