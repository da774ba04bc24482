//! Where the slots of a region lie.

use std::ops::Range;

use crate::{InvalidMessage, Layout, Slot, pb};

/// Most planes of a block or region: 128 layers of K and V with room to spare.
pub const MAX_PLANES: usize = 1024;
/// Most slots of one region: 16 Mi slots of 64 KiB are a terabyte.
pub const MAX_SLOTS: u32 = 1 << 24;

/// Why a geometry was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// No slots, or more than allowed.
    #[error("{slots} slots; a region has 1 to {MAX_SLOTS}")]
    Slots {
        /// As given.
        slots: u32,
    },
    /// No planes, or more than allowed.
    #[error("{planes} planes; a region has 1 to {MAX_PLANES}")]
    Planes {
        /// As given.
        planes: usize,
    },
    /// A plane without bytes.
    #[error("plane {plane} has no bytes")]
    EmptyPlane {
        /// Which plane.
        plane: usize,
    },
    /// Slots of one plane overlap.
    #[error("plane {plane}: its stride {stride} is less than its length {len}, so slots overlap")]
    Overlap {
        /// Which plane.
        plane: usize,
        /// Its stride.
        stride: u64,
        /// Its length.
        len: u64,
    },
    /// Two planes share bytes.
    #[error("planes {first} and {second} overlap")]
    PlanesOverlap {
        /// One of them.
        first: usize,
        /// The other.
        second: usize,
    },
    /// The end of a plane is no address.
    #[error("plane {plane} ends beyond 2^63 bytes")]
    TooFar {
        /// Which plane.
        plane: usize,
    },
    /// The planes do not make a block of the layout.
    #[error("the planes make blocks of {got} bytes; the layout has {want}")]
    BlockBytes {
        /// Sum of the planes' lengths.
        got: u64,
        /// The layout's.
        want: u64,
    },
    /// A plane ends outside the memory.
    #[error("the planes end at byte {end}; the region's memory has {len}")]
    OutOfMemory {
        /// End of the last slot.
        end: u64,
        /// Bytes of memory.
        len: u64,
    },
}

/// One strided piece of every slot: slot i occupies `[base + i*stride, +len)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plane {
    /// Offset of slot 0 in the region's memory, in bytes.
    pub base: u64,
    /// From one slot to the next, in bytes.
    pub stride: u64,
    /// Bytes of the piece.
    pub len: u64,
}

/// Slots and planes of a region; every span it yields is within [`Geometry::end`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    slots: u32,
    planes: Vec<Plane>,
    block_bytes: u64,
    end: u64,
}

impl Geometry {
    /// Checks and takes the parts of a geometry.
    ///
    /// # Errors
    /// [`GeometryError`] names the plane that is wrong.
    pub fn new(slots: u32, planes: Vec<Plane>) -> Result<Self, GeometryError> {
        if slots == 0 || slots > MAX_SLOTS {
            return Err(GeometryError::Slots { slots });
        }
        if planes.is_empty() || planes.len() > MAX_PLANES {
            return Err(GeometryError::Planes {
                planes: planes.len(),
            });
        }
        let (mut end, mut block_bytes) = (0, 0u64);
        for (index, plane) in planes.iter().enumerate() {
            if plane.len == 0 {
                return Err(GeometryError::EmptyPlane { plane: index });
            }
            if slots > 1 && plane.stride < plane.len {
                return Err(GeometryError::Overlap {
                    plane: index,
                    stride: plane.stride,
                    len: plane.len,
                });
            }
            let plane_end = plane
                .stride
                .checked_mul(u64::from(slots - 1))
                .and_then(|last| last.checked_add(plane.base))
                .and_then(|last| last.checked_add(plane.len))
                .filter(|end| *end < 1 << 63)
                .ok_or(GeometryError::TooFar { plane: index })?;
            end = end.max(plane_end);
            // Each length is below 2^63 / slots, so 1024 of them could still overflow.
            block_bytes = block_bytes
                .checked_add(plane.len)
                .ok_or(GeometryError::TooFar { plane: index })?;
        }
        check_disjoint(slots, &planes)?;
        Ok(Self {
            slots,
            planes,
            block_bytes,
            end,
        })
    }

    /// One plane, slot after slot.
    ///
    /// # Errors
    /// [`GeometryError`] when there are no slots, too many, or blocks without bytes.
    pub fn contiguous(slots: u32, block_bytes: u64) -> Result<Self, GeometryError> {
        Self::new(
            slots,
            vec![Plane {
                base: 0,
                stride: block_bytes,
                len: block_bytes,
            }],
        )
    }

    /// Does it hold blocks of this layout, within memory of `memory_len` bytes?
    ///
    /// # Errors
    /// [`GeometryError::BlockBytes`] or [`GeometryError::OutOfMemory`].
    pub fn fits(&self, layout: &Layout, memory_len: u64) -> Result<(), GeometryError> {
        self.fits_layout(layout)?;
        if self.end > memory_len {
            return Err(GeometryError::OutOfMemory {
                end: self.end,
                len: memory_len,
            });
        }
        Ok(())
    }

    /// Does it hold blocks of this layout?
    ///
    /// # Errors
    /// [`GeometryError::BlockBytes`].
    pub fn fits_layout(&self, layout: &Layout) -> Result<(), GeometryError> {
        if self.block_bytes != layout.block_bytes() {
            return Err(GeometryError::BlockBytes {
                got: self.block_bytes,
                want: layout.block_bytes(),
            });
        }
        Ok(())
    }

    /// Where a part of every slot's block lies: its bytes in this range, in block order. None where that is empty or
    /// goes beyond the block.
    #[must_use]
    pub fn part(&self, bytes: Range<u64>) -> Option<Self> {
        if bytes.is_empty() || bytes.end > self.block_bytes {
            return None;
        }
        let (mut planes, mut before, mut end) = (Vec::new(), 0, 0);
        for plane in &self.planes {
            // As of the block's first byte.
            let (from, to) = (before, before + plane.len);
            before = to;
            let (first, last) = (bytes.start.max(from), bytes.end.min(to));
            if first < last {
                let piece = Plane {
                    base: plane.base + (first - from),
                    stride: plane.stride,
                    len: last - first,
                };
                // No further than the plane it is of.
                end = end.max(piece.base + piece.stride * u64::from(self.slots - 1) + piece.len);
                planes.push(piece);
            }
        }
        Some(Self {
            slots: self.slots,
            planes,
            block_bytes: bytes.end - bytes.start,
            end,
        })
    }

    /// How many blocks it holds.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }
    /// The planes, in block order.
    #[must_use]
    pub fn planes(&self) -> &[Plane] {
        &self.planes
    }
    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }
    /// One past the last byte any slot occupies.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }
    /// Is there such a slot?
    #[must_use]
    pub fn contains(&self, slot: Slot) -> bool {
        slot.0 < self.slots
    }

    /// The byte ranges of a slot, in block order; empty for a slot that is not there.
    pub fn ranges(&self, slot: Slot) -> impl Iterator<Item = Range<u64>> + '_ {
        let planes: &[Plane] = if self.contains(slot) {
            &self.planes
        } else {
            &[]
        };
        planes.iter().map(move |plane| {
            let start = plane.base + u64::from(slot.0) * plane.stride;
            start..start + plane.len
        })
    }
}

/// No byte belongs to two slots. Planes either lie apart, or interleave with one common stride.
fn check_disjoint(slots: u32, planes: &[Plane]) -> Result<(), GeometryError> {
    let extent = |p: &Plane| p.base..p.base + p.stride * u64::from(slots - 1) + p.len;
    let mut order: Vec<usize> = (0..planes.len()).collect();
    order.sort_by_key(|&i| planes[i].base);
    // Groups of planes whose extents touch must share a stride and fit side by side within it.
    let mut group: Vec<usize> = Vec::new();
    let mut group_end = 0;
    for &i in &order {
        if group.is_empty() || planes[i].base >= group_end {
            check_group(slots, planes, &group)?;
            group.clear();
        }
        group_end = group_end.max(extent(&planes[i]).end);
        group.push(i);
    }
    check_group(slots, planes, &group)
}

/// `group` is in order of base.
fn check_group(slots: u32, planes: &[Plane], group: &[usize]) -> Result<(), GeometryError> {
    if group.len() < 2 {
        return Ok(());
    }
    let overlap = |first: usize, second: usize| {
        Err(GeometryError::PlanesOverlap {
            first: first.min(second),
            second: first.max(second),
        })
    };
    let stride = planes[group[0]].stride;
    if let Some(&other) = group.iter().find(|&&i| planes[i].stride != stride)
        && slots > 1
    {
        return overlap(group[0], other);
    }
    if slots == 1 {
        for pair in group.windows(2) {
            if planes[pair[0]].base + planes[pair[0]].len > planes[pair[1]].base {
                return overlap(pair[0], pair[1]);
            }
        }
        return Ok(());
    }
    // With one stride, what counts is where the pieces lie on a ring of that many bytes.
    let mut ring: Vec<(u64, u64, usize)> = group
        .iter()
        .map(|&i| (planes[i].base % stride, planes[i].len, i))
        .collect();
    ring.sort_unstable();
    for pair in ring.windows(2) {
        if pair[0].0 + pair[0].1 > pair[1].0 {
            return overlap(pair[0].2, pair[1].2);
        }
    }
    let (first, last) = (ring[0], ring[ring.len() - 1]);
    if last.0 + last.1 > first.0 + stride {
        return overlap(last.2, first.2);
    }
    Ok(())
}

impl TryFrom<pb::Geometry> for Geometry {
    type Error = InvalidMessage;
    fn try_from(message: pb::Geometry) -> Result<Self, InvalidMessage> {
        let planes = message
            .planes
            .into_iter()
            .map(|p| Plane {
                base: p.base,
                stride: p.stride,
                len: p.len,
            })
            .collect();
        Ok(Self::new(message.slots, planes)?)
    }
}

impl From<&Geometry> for pb::Geometry {
    fn from(geometry: &Geometry) -> Self {
        Self {
            slots: geometry.slots,
            planes: geometry
                .planes
                .iter()
                .map(|p| pb::Plane {
                    base: p.base,
                    stride: p.stride,
                    len: p.len,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn plane(base: u64, stride: u64, len: u64) -> Plane {
        Plane { base, stride, len }
    }

    #[test]
    fn contiguous_slots_follow_each_other() {
        let geometry = Geometry::contiguous(3, 10).unwrap();
        assert_eq!(geometry.end(), 30);
        assert_eq!(geometry.ranges(Slot(2)).next(), Some(20..30));
        assert_eq!(geometry.ranges(Slot(3)).count(), 0);
    }

    #[test]
    fn a_part_is_those_bytes_of_every_block() {
        let geometry = Geometry::new(3, vec![plane(0, 10, 8), plane(100, 6, 6)]).unwrap();
        let part = geometry.part(5..11).unwrap();
        assert_eq!(part.planes(), [plane(5, 10, 3), plane(100, 6, 3)]);
        assert_eq!((part.block_bytes(), part.slots(), part.end()), (6, 3, 115));
        assert!(part.ranges(Slot(2)).eq([25..28, 112..115]));
        assert_eq!(geometry.part(8..14).unwrap().planes(), [plane(100, 6, 6)]);
        assert_eq!(geometry.part(0..14).unwrap(), geometry);
        for none in [0..0, 8..15, 14..20] {
            assert_eq!(geometry.part(none), None);
        }
    }

    #[test]
    fn planes_may_lie_apart_or_interleave() {
        // Layer by layer.
        assert!(Geometry::new(4, vec![plane(0, 8, 8), plane(32, 8, 8)]).is_ok());
        // K and V of a block beside each other.
        assert!(Geometry::new(4, vec![plane(0, 16, 8), plane(8, 16, 8)]).is_ok());
        // A plane whose base lies several strides on, in the same gaps.
        assert!(Geometry::new(4, vec![plane(0, 16, 8), plane(24, 16, 8)]).is_ok());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(
            Geometry::new(0, vec![plane(0, 8, 8)]),
            Err(GeometryError::Slots { .. })
        ));
        assert!(matches!(
            Geometry::new(1, vec![]),
            Err(GeometryError::Planes { planes: 0 })
        ));
        assert!(matches!(
            Geometry::new(2, vec![plane(0, 4, 8)]),
            Err(GeometryError::Overlap { .. })
        ));
        assert!(matches!(
            Geometry::new(2, vec![plane(0, 16, 8), plane(4, 16, 8)]),
            Err(GeometryError::PlanesOverlap {
                first: 0,
                second: 1
            })
        ));
        assert!(matches!(
            Geometry::new(MAX_SLOTS, vec![plane(0, 1 << 60, 8)]),
            Err(GeometryError::TooFar { plane: 0 })
        ));
        assert!(matches!(
            Geometry::new(
                1,
                vec![
                    plane(0, 1, (1 << 63) - 1),
                    plane(1, 1, (1 << 63) - 2),
                    plane(0, 1, 9)
                ]
            ),
            Err(GeometryError::TooFar { .. } | GeometryError::PlanesOverlap { .. })
        ));
        let layout = Layout::new("u8", 1, 2, 8).unwrap();
        let geometry = Geometry::contiguous(2, 16).unwrap();
        assert!(geometry.fits(&layout, 32).is_ok());
        assert!(matches!(
            geometry.fits(&layout, 31),
            Err(GeometryError::OutOfMemory { end: 32, len: 31 })
        ));
    }

    proptest! {
        /// Against the obvious model: mark every byte, see whether one is marked twice.
        #[test]
        fn accepted_means_disjoint(
            slots in 1u32..5,
            planes in prop::collection::vec((0u64..80, 1u64..20, 1u64..12), 1..4),
        ) {
            let planes: Vec<_> = planes.into_iter().map(|(b, s, l)| plane(b, s, l)).collect();
            if let Ok(geometry) = Geometry::new(slots, planes) {
                let mut seen = HashSet::new();
                for slot in 0..slots {
                    for byte in geometry.ranges(Slot(slot)).flatten() {
                        prop_assert!(byte < geometry.end());
                        prop_assert!(seen.insert(byte), "byte {byte} twice in {geometry:?}");
                    }
                }
            }
        }
    }
}
