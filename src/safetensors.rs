//! The safetensors format: eight bytes of length, a JSON header of that length, then the tensors' bytes.
//! <https://github.com/huggingface/safetensors#format>

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use kvferry_proto::pb;
use serde::{Deserialize, Serialize};

/// Longest header, as the format's own library has it.
const MAX_HEADER_BYTES: u64 = 100 << 20;
/// What the tensors' bytes begin at a multiple of.
const ALIGNMENT: usize = 8;
/// A key of the header that is no tensor.
const METADATA: &str = "__metadata__";

/// Why a file is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SafetensorsError {
    #[error("{path} cannot be read: {source}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no safetensors file: {what}", path = path.display())]
    Format { path: PathBuf, what: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A file whose header was read.
#[derive(Debug)]
pub(crate) struct Safetensors {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// Of the first byte of the tensors in the file.
    pub(crate) data_start: u64,
    pub(crate) data_bytes: u64,
    /// With offsets from `data_start`.
    pub(crate) tensors: Vec<pb::TensorDescriptor>,
}

impl Safetensors {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self, SafetensorsError> {
        let failed = |source| SafetensorsError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        Self::read(&mut file, length)
            .map(|(data_start, tensors)| Self {
                path: path.to_owned(),
                file,
                data_start,
                data_bytes: length - data_start,
                tensors,
            })
            .map_err(|error| match error {
                Bad::Read(source) => failed(source),
                Bad::Format(what) => SafetensorsError::Format {
                    path: path.to_owned(),
                    what,
                },
            })
    }

    fn read(file: &mut impl Read, length: u64) -> Result<(u64, Vec<pb::TensorDescriptor>), Bad> {
        let format = |what: String| Bad::Format(what);
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(format("it has fewer than 8 bytes".to_owned()));
        }
        file.read_exact(&mut prefix)?;
        let header_bytes = u64::from_le_bytes(prefix);
        if header_bytes > MAX_HEADER_BYTES || header_bytes > length - 8 {
            return Err(format(format!("a header of {header_bytes} bytes")));
        }
        let mut header = vec![0; header_bytes as usize]; // at most 100 MiB
        file.read_exact(&mut header)?;
        let entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&header)
            .map_err(|error| format(format!("its header is no JSON object: {error}")))?;
        let data_bytes = length - 8 - header_bytes;
        let mut tensors = Vec::with_capacity(entries.len());
        for (name, entry) in entries {
            if name == METADATA {
                continue;
            }
            let entry: Entry = serde_json::from_value(entry)
                .map_err(|error| format(format!("tensor {name:?}: {error}")))?;
            let [start, end] = entry.data_offsets;
            if start > end || end > data_bytes {
                return Err(format(format!(
                    "tensor {name:?} lies at {start} to {end} of {data_bytes} bytes"
                )));
            }
            tensors.push(pb::TensorDescriptor {
                name,
                dtype: entry.dtype,
                shape: entry.shape,
                offset: start,
                bytes: end - start,
            });
        }
        if tensors.is_empty() {
            return Err(format("it has no tensors".to_owned()));
        }
        Ok((8 + header_bytes, tensors))
    }
}

enum Bad {
    Read(io::Error),
    Format(String),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// Writes what comes before the bytes of tensors that follow each other in this order.
pub(crate) fn write_header(
    to: &mut impl Write,
    tensors: &[pb::TensorDescriptor],
) -> io::Result<()> {
    let mut at = 0;
    let entries: BTreeMap<&str, Entry> = tensors
        .iter()
        .map(|tensor| {
            let start = at;
            at += tensor.bytes;
            let entry = Entry {
                dtype: tensor.dtype.clone(),
                shape: tensor.shape.clone(),
                data_offsets: [start, at],
            };
            (tensor.name.as_str(), entry)
        })
        .collect();
    let mut header = serde_json::to_vec(&entries)?;
    // Spaces at the end belong to the format.
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    to.write_all(&(header.len() as u64).to_le_bytes())?;
    to.write_all(&header)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<(u64, Vec<pb::TensorDescriptor>), String> {
        Safetensors::read(&mut &bytes[..], bytes.len() as u64).map_err(|bad| match bad {
            Bad::Read(error) => error.to_string(),
            Bad::Format(what) => what,
        })
    }

    fn with_header(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    #[test]
    fn a_header_round_trips() {
        let tensor = |name: &str, shape: Vec<u64>, offset, bytes| pb::TensorDescriptor {
            name: name.into(),
            dtype: "BF16".into(),
            shape,
            offset,
            bytes,
        };
        let tensors = [tensor("a", vec![2, 3], 0, 12), tensor("b", vec![], 12, 2)];
        let mut bytes = Vec::new();
        write_header(&mut bytes, &tensors).unwrap();
        let start = bytes.len();
        assert_eq!(start % ALIGNMENT, 0);
        bytes.extend([0; 14]);
        assert_eq!(read(&bytes), Ok((start as u64, tensors.to_vec())));
    }

    #[test]
    fn what_is_none_is_said() {
        let entry = |start: u64, end: u64| {
            format!(r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[{start},{end}]}}}}"#)
        };
        assert!(read(&with_header(&entry(0, 4), 4)).is_ok());
        let metadata = format!(r#"{{"__metadata__":{{"x":"y"}},{}"#, &entry(0, 4)[1..]);
        assert_eq!(read(&with_header(&metadata, 4)).unwrap().1.len(), 1);
        for bad in [
            Vec::new(),
            vec![0; 7],
            u64::MAX.to_le_bytes().to_vec(),
            with_header("[]", 0),
            with_header("{}", 0),
            with_header(r#"{"a":1}"#, 0),
            with_header(&entry(0, 5), 4),
            with_header(&entry(3, 2), 4),
        ] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), json in ".{0,40}") {
            let _ = read(&bytes);
            let _ = read(&with_header(&json, 8));
        }
    }
}
