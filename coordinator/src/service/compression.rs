//! How messages may be compressed: a build with the feature `zstd` takes zstd from whoever sends it, and
//! answers with it to whoever says that it takes it. Nobody else is answered otherwise than before.
//!
//! What a message decompresses to is bounded as a message is: tonic stops at `max_decoding_message_size`
//! and refuses it, whatever it would have become.

use tonic::codec::CompressionEncoding;

/// Taken, and used for answers to those who ask.
pub(crate) const ENCODINGS: &[CompressionEncoding] = &[
    #[cfg(feature = "zstd")]
    CompressionEncoding::Zstd,
];

/// A generated server, or tonic's own `Grpc`, with those.
macro_rules! negotiated {
    ($server:expr) => {
        $crate::service::compression::ENCODINGS
            .iter()
            .fold($server, |server, encoding| {
                server
                    .accept_compressed(*encoding)
                    .send_compressed(*encoding)
            })
    };
}

pub(crate) use negotiated;
