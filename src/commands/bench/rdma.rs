//! Is there a device that pulls could be measured over?

use kvferry_bench::transfer::{
    point::{Point, Transport},
    yardstick::read_bw::Device,
};
use kvferry_ibverbs::{GidPreference, Library};

/// Why RDMA cannot be measured here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoRdma {
    #[error(transparent)]
    Library(#[from] kvferry_ibverbs::LoadError),
    #[error(transparent)]
    Devices(#[from] kvferry_ibverbs::ListError),
    #[error(
        "no RDMA device here has a port that is up and has an address; `kvferry doctor` says what there is"
    )]
    NoPort,
}

/// Refuses points that ask for RDMA where there is none. Where all devices are software, blocks of such
/// points carry checksums: without one, no agent takes a block from such a device. Gives the device that
/// `ib_read_bw` is measured over.
pub(super) fn admit(points: &mut [Point]) -> Result<Option<Device>, NoRdma> {
    let asks = |point: &Point| point.transport == Transport::Rdma;
    if !points.iter().any(asks) {
        return Ok(None);
    }
    let devices = Library::load()?.devices()?;
    let opened = devices.iter().filter_map(|device| device.open().ok());
    let usable: Vec<_> = opened
        .filter_map(|context| {
            let ports = context.ports().unwrap_or_default();
            let mut addresses = ports.iter().filter_map(|port| {
                let address = context.address(port.number, GidPreference::Auto).ok()?;
                Some(Device {
                    name: context.name().to_owned(),
                    port: port.number,
                    gid_index: address.gid_index,
                })
            });
            let device = addresses.next()?;
            Some((context.is_software(), device))
        })
        .collect();
    // A card before a software device, as agents prefer them.
    let Some((_, first)) = usable.iter().min_by_key(|(software, _)| *software) else {
        return Err(NoRdma::NoPort);
    };
    if usable.iter().all(|(software, _)| *software) {
        for point in points.iter_mut().filter(|point| asks(point)) {
            point.checksum = true;
        }
    }
    Ok(Some(first.clone()))
}
