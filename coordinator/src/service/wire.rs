//! Locate's own codec: the answer is written as it travels, column by column, while the index is
//! searched. No message is built, and an owner's row is the bytes it was encoded to when the region
//! was declared.

use bytes::{Buf, BufMut, BytesMut};
use kvferry_proto::pb;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint},
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::directory::{Answer, OwnerRow};

/// Fields of `LocateResponse`; that of the owners is part of their rows.
const ANSWERED: u32 = 1;
const CANDIDATE_COUNTS: u32 = 3;
const OWNER_INDEX: u32 = 4;
const SLOTS: u32 = 5;
const GENERATIONS: u32 = 6;
const CHECKSUMS: u32 = 7;
const LOCATIONS: u32 = 12;
const LOCATION_BLOCKS: u32 = 13;
const LOCATION_INDEX: u32 = 14;

/// An answer of a thousand blocks takes some 8 to 12 KiB; a larger one grows to its size at once.
const BUFFER_BYTES: usize = 16 << 10;

/// A `LocateResponse` in the making: one buffer a column.
#[derive(Debug, Default)]
pub(super) struct Columns {
    answered: u32,
    /// Of those, blocks with a candidate.
    found: u32,
    candidates: usize,
    owners: BytesMut,
    counts: Vec<u8>,
    owner_index: Vec<u8>,
    slots: Vec<u8>,
    generations: Vec<u8>,
    /// Empty, or one per candidate.
    checksums: Vec<u8>,
    /// As fields; empty where nobody asked for them, like the columns that follow.
    locations: Vec<u8>,
    location_blocks: Vec<u8>,
    location_index: Vec<u8>,
}

impl Columns {
    /// Room for so many blocks of one candidate each.
    pub(super) fn with_room(blocks: usize) -> Self {
        Self {
            counts: Vec::with_capacity(blocks),
            owner_index: Vec::with_capacity(blocks),
            slots: Vec::with_capacity(blocks * 4),
            generations: Vec::with_capacity(blocks * 2),
            ..Self::default()
        }
    }

    /// Blocks that somebody has.
    pub(super) fn found(&self) -> u32 {
        self.found
    }

    /// Writes the message.
    pub(super) fn put(&self, out: &mut impl BufMut) {
        if self.answered != 0 {
            encode_key(ANSWERED, WireType::Varint, out);
            encode_varint(self.answered.into(), out);
        }
        out.put_slice(&self.owners);
        column(CANDIDATE_COUNTS, &self.counts, out);
        column(OWNER_INDEX, &self.owner_index, out);
        column(SLOTS, &self.slots, out);
        column(GENERATIONS, &self.generations, out);
        column(CHECKSUMS, &self.checksums, out);
        out.put_slice(&self.locations);
        column(LOCATION_BLOCKS, &self.location_blocks, out);
        column(LOCATION_INDEX, &self.location_index, out);
    }

    /// As it travels.
    #[cfg(feature = "fuzzing")]
    pub(super) fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        assert!(out.len() <= self.max_len());
        out
    }

    /// At most what all of it takes.
    pub(super) fn max_len(&self) -> usize {
        let columns = [
            &self.counts,
            &self.owner_index,
            &self.slots,
            &self.generations,
            &self.checksums,
            &self.location_blocks,
            &self.location_index,
        ];
        let columns =
            columns.map(|column| 1 + encoded_len_varint(column.len() as u64) + column.len());
        // A tag, and a number of five bytes at most.
        6 + self.owners.len() + self.locations.len() + columns.iter().sum::<usize>()
    }
}

/// A packed field; left out where it is empty, as prost does.
fn column(field: u32, packed: &[u8], out: &mut impl BufMut) {
    if packed.is_empty() {
        return;
    }
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(packed.len() as u64, out);
    out.put_slice(packed);
}

/// Most numbers here are small: one byte is the common case and no loop.
fn varint(value: u64, out: &mut Vec<u8>) {
    if value < 0x80 {
        out.push(value as u8);
    } else {
        encode_varint(value, out);
    }
}

impl Answer for Columns {
    fn owner(&mut self, owner: OwnerRow<'_>) {
        self.owners.put_slice(owner.encoded);
    }

    fn candidate(&mut self, row: u32, slot: u32, generation: u64, checksum: u64) {
        // The column starts with the first that is known.
        if checksum != 0 && self.checksums.is_empty() {
            self.checksums.resize(self.candidates * size_of::<u64>(), 0);
        }
        if checksum != 0 || !self.checksums.is_empty() {
            self.checksums.put_u64_le(checksum);
        }
        self.candidates += 1;
        varint(row.into(), &mut self.owner_index);
        varint(slot.into(), &mut self.slots);
        varint(generation, &mut self.generations);
    }

    fn block(&mut self, candidates: u32) {
        self.answered += 1;
        self.found += u32::from(candidates > 0);
        varint(candidates.into(), &mut self.counts);
    }

    fn location(&mut self, location: &str) {
        encode_key(LOCATIONS, WireType::LengthDelimited, &mut self.locations);
        encode_varint(location.len() as u64, &mut self.locations);
        self.locations.put_slice(location.as_bytes());
    }

    fn located(&mut self, row: u32) {
        varint(self.answered.into(), &mut self.location_blocks);
        varint(row.into(), &mut self.location_index);
    }
}

/// Reads a question. The hashes stay where they came in: `bytes` fields are slices of the buffer.
#[allow(clippy::result_large_err)] // tonic's signature
pub(super) fn request(message: impl Buf) -> Result<pb::LocateRequest, Status> {
    pb::LocateRequest::decode(message).map_err(|error| Status::internal(error.to_string()))
}

/// `LocateRequest` in, columns out.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LocateCodec;

impl Codec for LocateCodec {
    type Encode = Columns;
    type Decode = pb::LocateRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for LocateCodec {
    type Item = Columns;
    type Error = Status;

    fn encode(&mut self, answer: Columns, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(answer.max_len());
        answer.put(out);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}

impl Decoder for LocateCodec {
    type Item = pb::LocateRequest;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<pb::LocateRequest>, Status> {
        request(message).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kvferry_proto::{Geometry, Incarnation, NodeAddresses, NodeId, RegionId};
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use std::sync::Arc;

    fn row(number: u32) -> pb::LocatedRegion {
        pb::LocatedRegion {
            node: format!("node{number}"),
            incarnation: 7,
            region: number,
            ..pb::LocatedRegion::default()
        }
    }

    proptest! {
        /// What is written is, byte for byte, what prost writes.
        #[test]
        fn an_answer_is_what_prost_writes(
            rows in 0..3u32,
            blocks in vec(vec((0..200u32, any::<u32>(), any::<u64>(), 0..3u64), 0..3), 0..20),
            locations in vec(".{0,300}", 0..3),
        ) {
            let mut columns = Columns::with_room(2);
            let mut message = pb::LocateResponse {
                owners: (0..rows).map(row).collect(),
                ..pb::LocateResponse::default()
            };
            for owner in &message.owners {
                let mut encoded = Vec::new();
                prost::encoding::message::encode(2, owner, &mut encoded);
                columns.owner(OwnerRow {
                    node: &NodeId::new(&owner.node).unwrap(),
                    incarnation: Incarnation::new(7).unwrap(),
                    region: RegionId(owner.region),
                    addresses: &Arc::new(NodeAddresses::default()),
                    geometry: &Arc::new(Geometry::contiguous(1, 1).unwrap()),
                    encoded: &Bytes::from(encoded),
                });
            }
            for location in &locations {
                columns.location(location);
            }
            message.locations.clone_from(&locations);
            for block in &blocks {
                if block.is_empty() && !locations.is_empty() {
                    let row = message.answered % locations.len() as u32;
                    columns.located(row);
                    message.location_blocks.push(message.answered);
                    message.location_index.push(row);
                }
                for (row, slot, generation, checksum) in block {
                    columns.candidate(*row, *slot, *generation, *checksum);
                    message.owner_index.push(*row);
                    message.slots.push(*slot);
                    message.generations.push(*generation);
                    message.checksums.push(*checksum);
                }
                columns.block(block.len() as u32);
                message.answered += 1;
                message.candidate_counts.push(block.len() as u32);
            }
            if message.checksums.iter().all(|sum| *sum == 0) {
                message.checksums.clear();
            }
            let mut written = Vec::new();
            columns.put(&mut written);
            prop_assert!(written.len() <= columns.max_len());
            prop_assert_eq!(written, message.encode_to_vec());
        }
    }
}
