//! Plans against the obvious model: every byte, one by one.

use kvferry_proto::Plane;
use proptest::prelude::*;

use super::*;

fn link(max_spans: usize, max_bytes: u64) -> Capabilities {
    Capabilities {
        max_spans,
        max_bytes,
        window_bytes: 1 << 20,
        distance: 0,
        needs_checksum: false,
        span_bytes: 0,
    }
}

fn memory() -> Arc<HostMemory> {
    Arc::new(HostMemory::anonymous(4096).unwrap())
}

/// Remote and local address of every byte, in order.
fn bytes(requests: &[ReadRequest]) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    for request in requests {
        let remote = request
            .remote
            .iter()
            .flat_map(|s| s.offset..s.offset + s.len);
        let local = request.local.ranges.iter().cloned().flatten();
        all.extend(remote.zip(local));
    }
    all
}

#[test]
fn neighbouring_blocks_are_one_span() {
    let geometry = Geometry::contiguous(8, 16).unwrap();
    let memory = memory();
    let places: Vec<_> = (0..3u64)
        .map(|n| Destination {
            memory: Arc::clone(&memory).into(),
            ranges: std::iter::once(n * 16..n * 16 + 16).collect(),
        })
        .collect();
    let blocks: Vec<_> = places
        .iter()
        .zip(2..)
        .map(|(destination, slot)| BlockRead {
            region: RegionId(7),
            geometry: &geometry,
            slot: Slot(slot),
            destination,
        })
        .collect();
    let requests = data_reads(&blocks, &link(1, 1 << 20)).unwrap();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        requests[0].remote,
        [RemoteSpan {
            region: RegionId(7),
            part: Part::Data,
            offset: 32,
            len: 48
        }]
    );
    let ranges = requests[0].local.ranges.iter().cloned();
    assert!(ranges.eq(std::iter::once(0..48)));
}

#[test]
fn what_does_not_fit_is_refused() {
    let geometry = Geometry::contiguous(2, 16).unwrap();
    let destination = Destination {
        memory: memory().into(),
        ranges: std::iter::once(0..15).collect(),
    };
    let block = |slot| BlockRead {
        region: RegionId(1),
        geometry: &geometry,
        slot: Slot(slot),
        destination: &destination,
    };
    assert_eq!(
        data_reads(&[block(0)], &link(1, 64)).unwrap_err(),
        PlanError::LengthMismatch {
            remote: 16,
            local: 15
        }
    );
    assert_eq!(
        data_reads(&[block(2)], &link(1, 64)).unwrap_err(),
        PlanError::NoSuchSlot { slot: Slot(2) }
    );
    assert_eq!(
        data_reads(&[], &link(0, 64)).unwrap_err(),
        PlanError::NoRoom
    );
    let scratch = Arc::new(HostMemory::anonymous(8).unwrap());
    let slots = [(RegionId(1), Slot(0)), (RegionId(1), Slot(1))];
    assert_eq!(
        generation_reads(&slots, &scratch, &link(1, 64)).unwrap_err(),
        PlanError::Scratch { words: 2 }
    );
    assert_eq!(
        generation_reads(&slots[..1], &scratch, &link(1, 7)).unwrap_err(),
        PlanError::NoRoom
    );
}

#[test]
fn words_between_are_read_too_where_that_costs_less_than_a_span() {
    let slots: Vec<_> = [9, 0, 3, 8, 3].map(|s| (RegionId(1), Slot(s))).into();
    let spans = |span_bytes, room| {
        let scratch = Arc::new(HostMemory::anonymous(room).unwrap());
        let link = Capabilities {
            span_bytes,
            ..link(64, 4096)
        };
        let (requests, offsets) = generation_reads(&slots, &scratch, &link).unwrap();
        let spans = requests.into_iter().flat_map(|request| request.remote);
        let spans: Vec<_> = spans.map(|span| (span.offset, span.len)).collect();
        (spans, offsets)
    };
    let apart = vec![(0, 8), (24, 8), (64, 16)];
    assert_eq!(spans(0, 4096), (apart.clone(), vec![24, 0, 8, 16, 8]));
    let some = vec![(0, 32), (64, 16)];
    assert_eq!(spans(16, 4096), (some, vec![40, 0, 24, 32, 24]));
    assert_eq!(spans(32, 4096), (vec![(0, 80)], vec![72, 0, 24, 64, 24]));
    assert_eq!(spans(32, 72).0, apart, "no room for the words between");
}

proptest! {
    #[test]
    fn every_byte_goes_where_it_belongs(
        lens in prop::collection::vec(1u64..12, 1..5),
        picked in prop::collection::vec(0u32..6, 1..6),
        cuts in prop::collection::vec(1u64..9, 1..8),
        gap in 0u64..3,
        max_spans in 1usize..6,
        max_bytes in 1u64..40,
    ) {
        // Planes one after the other, six slots each.
        let mut base = 0;
        let planes = lens.iter().map(|&len| {
            let plane = Plane { base, stride: len + gap, len };
            base += 6 * (len + gap);
            plane
        }).collect();
        let geometry = Geometry::new(6, planes).unwrap();
        let memory = memory();
        // Destinations cut at other places, in descending or ascending pieces.
        let mut at = 0;
        let places: Vec<_> = picked.iter().map(|_| {
            let (mut left, mut ranges, mut cut) = (geometry.block_bytes(), Vec::new(), cuts.iter().cycle());
            while left > 0 {
                let len = left.min(*cut.next().unwrap());
                ranges.push(at..at + len);
                at += len + gap;
                left -= len;
            }
            Destination { memory: Arc::clone(&memory).into(), ranges: ranges.into() }
        }).collect();
        let blocks: Vec<_> = picked.iter().zip(&places).map(|(&slot, destination)| BlockRead {
            region: RegionId(1), geometry: &geometry, slot: Slot(slot), destination,
        }).collect();
        let bounds = link(max_spans, max_bytes);
        let requests: Vec<_> = data_reads(&blocks, &bounds)
            .unwrap()
            .into_iter()
            .filter_map(PlannedRead::into_host)
            .collect();
        let model: Vec<_> = blocks.iter().flat_map(|block| {
            let remote = geometry.ranges(block.slot).flatten();
            remote.zip(block.destination.ranges.iter().cloned().flatten()).collect::<Vec<_>>()
        }).collect();
        prop_assert_eq!(bytes(&requests), model);
        for request in &requests {
            prop_assert!(request.check(&bounds).is_ok());
            for pair in request.remote.windows(2) {
                prop_assert!(pair[0].end() != Some(pair[1].offset), "not merged");
            }
        }
    }

    #[test]
    fn every_word_is_where_the_plan_says(
        slots in prop::collection::vec((0u32..3, 0u32..20), 0..40),
        max_spans in 1usize..6,
        max_bytes in 8u64..100,
        span_bytes in 0u64..40,
    ) {
        let scratch = memory();
        let slots: Vec<_> = slots.into_iter().map(|(r, s)| (RegionId(r), Slot(s))).collect();
        let bounds = link(max_spans, max_bytes);
        let bounds = Capabilities { span_bytes, ..bounds };
        let (requests, offsets) = generation_reads(&slots, &scratch, &bounds).unwrap();
        let mut at = std::collections::HashMap::new();
        for request in &requests {
            prop_assert!(request.check(&bounds).is_ok());
            let remote = request.remote.iter().flat_map(|s| (s.offset..s.offset + s.len).map(|o| (s.region, o)));
            at.extend(request.local.ranges.iter().cloned().flatten().zip(remote));
            // Never torn.
            prop_assert!(request.remote.iter().all(|s| s.len % 8 == 0 && s.offset % 8 == 0));
        }
        for (&(region, slot), offset) in slots.iter().zip(offsets) {
            for byte in 0..8 {
                prop_assert_eq!(at[&(offset + byte)], (region, u64::from(slot.0) * 8 + byte));
            }
        }
    }
}
