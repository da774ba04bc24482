//! Names, hashes and numbers that come as text.

use kvferry_proto::{BlockHash, Location, NamespaceName, NodeId, SourceId, SourceName};

use crate::Target;

pub(super) const TARGET: Target = Target {
    name: "text",
    run,
    seeds,
};

fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // What is taken is written as it came, but for the case of digits.
    if let Ok(hash) = BlockHash::from_hex(text) {
        assert_eq!(hash.to_string(), text.to_ascii_lowercase());
        assert_eq!(BlockHash::new(hash.as_bytes()).unwrap(), hash);
    }
    if let Ok(id) = SourceId::from_hex(text) {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(node) = NodeId::new(text) {
        assert_eq!(node.as_str(), text);
    }
    if let Ok(name) = NamespaceName::new(text) {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(location) = Location::new(text) {
        assert_eq!(location.as_str(), text);
    }
    if let Ok(name) = SourceName::new(text) {
        assert_eq!(name.as_str(), text);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    [
        "deadbeefdeadbeef",
        "node-1.rack:2",
        "tenant/model@rev+bf16=x",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
