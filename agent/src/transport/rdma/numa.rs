//! Which NUMA node memory lies on, as the kernel tells in /proc.

use kvferry_memory::HostMemory;

/// The node most of the mapping's pages are on; None where none is in memory or the kernel does not
/// tell. Reads a file: not for hot paths.
pub(super) fn node_of(memory: &HostMemory) -> Option<u32> {
    let maps = std::fs::read_to_string("/proc/self/numa_maps").ok()?;
    node_in(&maps, memory.as_raw_parts().0.addr())
}

fn node_in(maps: &str, address: usize) -> Option<u32> {
    let start = format!("{address:x} ");
    let line = maps.lines().find(|line| line.starts_with(&start))?;
    let pages = line.split(' ').filter_map(|word| {
        let (node, pages) = word.strip_prefix('N')?.split_once('=')?;
        Some((pages.parse::<u64>().ok()?, node.parse::<u32>().ok()?))
    });
    pages.max().map(|(_, node)| node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_with_most_pages_is_found() {
        let maps = "7f0000000000 default file=/memfd:pool dirty=12 N0=4 N1=8 kernelpagesize_kB=4\n\
                    7f0000100000 default anon=1 N0=1\n7f0000200000 default\n";
        assert_eq!(node_in(maps, 0x7f00_0000_0000), Some(1));
        assert_eq!(node_in(maps, 0x7f00_0010_0000), Some(0));
        assert_eq!(node_in(maps, 0x7f00_0020_0000), None);
        assert_eq!(node_in(maps, 0x1), None);
    }
}
