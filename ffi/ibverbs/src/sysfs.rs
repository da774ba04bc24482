//! What a library from before 2020 does not tell, the kernel shows under /sys.

use std::{
    fs, io,
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

use crate::{Gid, GidEntry, GidKind};

/// Where the kernel shows a device.
pub(crate) fn device(name: &str) -> PathBuf {
    Path::new("/sys/class/infiniband").join(name)
}

/// The GIDs of a port.
pub(crate) fn gids(name: &str, port: u8) -> io::Result<Vec<GidEntry>> {
    gids_under(&device(name).join("ports").join(port.to_string()))
}

fn gids_under(port: &Path) -> io::Result<Vec<GidEntry>> {
    let mut entries: Vec<GidEntry> = fs::read_dir(port.join("gids"))?
        .filter_map(|file| {
            let name = file.ok()?.file_name();
            let index: u32 = name.to_str()?.parse().ok()?;
            let text = fs::read_to_string(port.join("gids").join(&name)).ok()?;
            let gid = Gid(text.trim().parse::<Ipv6Addr>().ok()?.octets());
            // Reading the type of an unused place is an error.
            let kind = fs::read_to_string(port.join("gid_attrs/types").join(&name)).ok()?;
            let kind = match kind.trim() {
                "RoCE v2" => GidKind::RoceV2,
                "IB/RoCE v1" if is_ethernet(port) => GidKind::RoceV1,
                _ => GidKind::InfiniBand,
            };
            (!gid.is_zero()).then_some(GidEntry { index, gid, kind })
        })
        .collect();
    entries.sort_by_key(|entry| entry.index);
    Ok(entries)
}

fn is_ethernet(port: &Path) -> bool {
    fs::read_to_string(port.join("link_layer")).is_ok_and(|text| text.trim() == "Ethernet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_become_a_table() {
        let dir = std::env::temp_dir().join(format!("kvferry-sysfs-{}", std::process::id()));
        fs::create_dir_all(dir.join("gids")).unwrap();
        fs::create_dir_all(dir.join("gid_attrs/types")).unwrap();
        fs::write(dir.join("link_layer"), "Ethernet\n").unwrap();
        for (index, gid, kind) in [
            (
                "1",
                "0000:0000:0000:0000:0000:ffff:0a08:0101\n",
                Some("RoCE v2\n"),
            ),
            (
                "0",
                "fe80:0000:0000:0000:0000:0000:0000:0001\n",
                Some("IB/RoCE v1\n"),
            ),
            ("2", "0000:0000:0000:0000:0000:0000:0000:0000\n", None),
        ] {
            fs::write(dir.join("gids").join(index), gid).unwrap();
            if let Some(kind) = kind {
                fs::write(dir.join("gid_attrs/types").join(index), kind).unwrap();
            }
        }
        let table = gids_under(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let seen: Vec<_> = table
            .iter()
            .map(|entry| (entry.index, entry.kind, entry.gid.to_string()))
            .collect();
        assert_eq!(
            seen,
            [
                (0, GidKind::RoceV1, "fe80::1".to_owned()),
                (1, GidKind::RoceV2, "10.8.1.1".to_owned()),
            ]
        );
    }
}
