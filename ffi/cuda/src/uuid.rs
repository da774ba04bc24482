//! The identity of a device, by which two processes name the same one.

use std::{fmt, str::FromStr};

/// A GPU's identity, or that of a part of one (MIG). Written and read as `nvidia-smi -L` shows it:
/// `GPU-01234567-89ab-cdef-0123-456789abcdef`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceUuid(pub [u8; 16]);

/// A text that is no device's identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a GPU's UUID: write it as nvidia-smi -L does, GPU- or MIG- and 32 hexadecimal digits in groups of 8-4-4-4-12"
)]
pub struct InvalidUuid;

/// Digits in each group.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

impl FromStr for DeviceUuid {
    type Err = InvalidUuid;

    fn from_str(text: &str) -> Result<Self, InvalidUuid> {
        let text = text
            .strip_prefix("GPU-")
            .or_else(|| text.strip_prefix("MIG-"))
            .unwrap_or(text);
        let groups: Vec<&str> = text.split('-').collect();
        if groups.len() != GROUPS.len()
            || groups
                .iter()
                .zip(GROUPS)
                .any(|(group, len)| group.len() != len)
        {
            return Err(InvalidUuid);
        }
        let digits: Option<Vec<u8>> = groups
            .concat()
            .chars()
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect();
        let digits = digits.ok_or(InvalidUuid)?;
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GPU")?;
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 0 | 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for DeviceUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_writes_and_nothing_else() {
        let uuid = DeviceUuid(std::array::from_fn(|at| (at * 17) as u8));
        let text = uuid.to_string();
        assert_eq!(text, "GPU-00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(text.parse(), Ok(uuid));
        assert_eq!(text.replace("GPU", "MIG").parse(), Ok(uuid));
        assert_eq!(text.trim_start_matches("GPU-").parse(), Ok(uuid));
        for wrong in [
            "",
            "GPU-",
            "GPU-00112233445566778899aabbccddeeff",
            "GPU-0011223-34455-6677-8899-aabbccddeeff",
            "GPU-00112233-4455-6677-8899-aabbccddeefg",
            "GPU-+0112233-4455-6677-8899-aabbccddeeff",
            "GPU-é112233-4455-6677-8899-aabbccddeeff",
            "0",
        ] {
            assert_eq!(wrong.parse::<DeviceUuid>(), Err(InvalidUuid), "{wrong}");
        }
    }
}
