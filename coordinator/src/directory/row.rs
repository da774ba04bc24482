//! A region's row in the table of owners of an answer, as it travels.

use bytes::{Bytes, BytesMut};
use kvferry_proto::pb;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};

use super::{Directory, node::Node, region::Region};

/// The field `owners` of `LocateResponse`.
const OWNERS: u32 = 2;

impl Directory {
    /// Writes the row of a region that was declared just now.
    pub(super) fn write_row(&mut self, handle: u32) {
        let Some(region) = self.catalog.region(handle) else {
            return;
        };
        let Some(row) = self.nodes.get(region.node).map(|node| row(node, region)) else {
            return;
        };
        if let Some(region) = self.catalog.regions.get_mut(handle) {
            region.row = row;
        }
    }

    /// Writes the rows of all regions of a node.
    pub(super) fn write_rows(&mut self, node: u32) {
        let regions: Vec<u32> = match self.nodes.get(node) {
            Some(node) => node.accepted().map(|(_, handle)| handle).collect(),
            None => Vec::new(),
        };
        for region in regions {
            self.write_row(region);
        }
    }
}

fn row(node: &Node, region: &Region) -> Bytes {
    let row = pb::LocatedRegion {
        node: node.name.to_string(),
        incarnation: node.incarnation.get(),
        region: region.id.0,
        addresses: Some((&*node.addresses).into()),
        geometry: Some((&*region.geometry).into()),
    };
    let mut bytes = BytesMut::new();
    encode_key(OWNERS, WireType::LengthDelimited, &mut bytes);
    encode_varint(row.encoded_len() as u64, &mut bytes);
    // A buffer that grows has room; were it otherwise, the row would be empty, not wrong.
    match row.encode(&mut bytes) {
        Ok(()) => bytes.freeze(),
        Err(_) => Bytes::new(),
    }
}
