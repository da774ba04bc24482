//! Is there a device that pulls could be measured over?

use kvferry_bench::transfer::point::{Point, Transport};
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
/// points carry checksums: without one, no agent takes a block from such a device.
pub(super) fn admit(points: &mut [Point]) -> Result<(), NoRdma> {
    let asks = |point: &Point| point.transport == Transport::Rdma;
    if !points.iter().any(asks) {
        return Ok(());
    }
    let devices = Library::load()?.devices()?;
    let opened = devices.iter().filter_map(|device| device.open().ok());
    let usable: Vec<_> = opened
        .filter(|context| {
            let ports = context.ports().unwrap_or_default();
            let has_address = |port: u8| context.address(port, GidPreference::Auto).is_ok();
            ports.iter().any(|port| has_address(port.number))
        })
        .collect();
    if usable.is_empty() {
        return Err(NoRdma::NoPort);
    }
    if usable.iter().all(|context| context.is_software()) {
        for point in points.iter_mut().filter(|point| asks(point)) {
            point.checksum = true;
        }
    }
    Ok(())
}
