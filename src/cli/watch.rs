//! What can be typed after `kvferry watch`.

use std::str::FromStr;

use clap::Args;

use crate::client::Reach;

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Whose changes.
    pub(crate) namespace: String,
    /// Go on after this, as an earlier run printed it, instead of with all that is there.
    #[arg(long, value_name = "EPOCH:SEQ")]
    pub(crate) from: Option<From>,
    /// End when all that is there has been told.
    #[arg(long)]
    pub(crate) once: bool,
    /// Print JSON lines.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// A place in a coordinator's account of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct From {
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
}

/// Not a place.
#[derive(Debug, thiserror::Error)]
#[error("expected EPOCH:SEQ as an earlier run printed it, such as 5f3a9c:120")]
pub(crate) struct NotFrom;

impl FromStr for From {
    type Err = NotFrom;

    fn from_str(text: &str) -> Result<Self, NotFrom> {
        let (epoch, seq) = text.split_once(':').ok_or(NotFrom)?;
        let epoch = u64::from_str_radix(epoch, 16).map_err(|_| NotFrom)?;
        let seq = seq.parse().map_err(|_| NotFrom)?;
        match (epoch, seq) {
            (0, _) | (_, 0) => Err(NotFrom),
            (epoch, seq) => Ok(Self { epoch, seq }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_epoch_and_a_number() {
        let from: From = "5f3a9c:120".parse().unwrap();
        let (epoch, seq) = (0x5f_3a9c, 120);
        assert_eq!(from, From { epoch, seq });
        for bad in ["120", "0:1", "1:0", "x:1", "1:x", ""] {
            assert!(bad.parse::<From>().is_err(), "{bad}");
        }
    }
}
