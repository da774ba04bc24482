//! Is a device a card, or a program in the kernel that plays one?

use std::{fs, path::Path};

use crate::sysfs;

/// What the kernel's software devices give for their vendor: rdma_rxe all ones, siw "bmt". A card has the 24 bits that
/// the IEEE gave its maker.
const SOFTWARE_VENDORS: [u32; 2] = [0x00ff_ffff, 0x0062_6d74];

/// True for Soft-RoCE (rdma_rxe) and Soft-iWARP (siw), and where the kernel shows no hardware under the device: who
/// relies on a card must be able to tell that there is one.
pub(crate) fn is_software(device: &str, vendor: u32) -> bool {
    SOFTWARE_VENDORS.contains(&vendor) || !has_hardware(&sysfs::device(device))
}

/// A card hangs on a bus, so its `device` leads there. A software device has none, or that of the interface it sits on
/// (older kernels); Soft-RoCE names the interface in a file `parent`, which cards do not have.
fn has_hardware(device: &Path) -> bool {
    fs::exists(device.join("device")).unwrap_or(false)
        && !fs::exists(device.join("parent")).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory as the kernel shows a device.
    fn shown(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            fs::create_dir_all(dir.path().join(file)).unwrap();
        }
        dir
    }

    #[test]
    fn a_card_hangs_on_a_bus_and_a_program_does_not() {
        let card = shown(&["device/driver", "ports/1"]);
        let rxe = shown(&["parent", "ports/1"]);
        let older_rxe = shown(&["device/driver", "parent", "ports/1"]);
        let siw = shown(&["ports/1"]);
        assert!(has_hardware(card.path()));
        for software in [&rxe, &older_rxe, &siw] {
            assert!(!has_hardware(software.path()));
        }
        assert!(!has_hardware(Path::new("/nowhere")));
    }

    #[test]
    fn a_program_names_no_maker() {
        // Whatever the kernel shows: Soft-iWARP's `device` was its interface's card once.
        for vendor in SOFTWARE_VENDORS {
            assert!(is_software("none", vendor));
        }
        assert!(is_software("none", 0x02c9));
    }
}
