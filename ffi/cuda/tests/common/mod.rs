//! Checks that hold on any libcuda: run on the fake one and on a GPU.

pub(crate) mod checks;
pub(crate) mod exporter;

use std::{
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use kvferry_cuda::{Context, GpuMemory, Library, LoadError, Staging, StagingOptions};

/// Which libcuda.
pub(crate) struct World {
    /// None: the system's.
    pub(crate) path: Option<PathBuf>,
    pub(crate) library: Library,
}

impl World {
    pub(crate) fn open(path: Option<PathBuf>) -> Result<Self, LoadError> {
        let library = match &path {
            Some(path) => Library::load_from(path)?,
            None => Library::load()?,
        };
        Ok(Self { path, library })
    }

    pub(crate) fn context(&self) -> Arc<Context> {
        self.library.device(0).unwrap().context().unwrap()
    }
}

/// Long enough for any copy of these tests, also on a busy machine.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub(crate) fn small_ring(context: &Arc<Context>, buffers: u32, ahead: u32) -> Arc<Staging> {
    let options = StagingOptions {
        buffers,
        ahead,
        buffer_bytes: 16 << 10,
        ..StagingOptions::default()
    };
    Staging::new(context, options).unwrap()
}

/// Bytes that tell where they are.
pub(crate) fn pattern(seed: u64, range: Range<u64>) -> Vec<u8> {
    range
        .map(|at| (at.wrapping_mul(0x9e37_79b9).wrapping_add(seed) >> 7) as u8)
        .collect()
}

/// All bytes of the ranges, through the ring.
pub(crate) fn read(
    staging: &Arc<Staging>,
    gpu: &Arc<GpuMemory>,
    ranges: Vec<Range<u64>>,
) -> Vec<u8> {
    let mut outbound = staging.read(gpu, ranges).unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = outbound.next(soon()).unwrap() {
        let range = chunk.range();
        let at = bytes.len();
        bytes.resize(at + (range.end - range.start) as usize, 0);
        chunk
            .memory()
            .read_at(range.start, &mut bytes[at..])
            .unwrap();
    }
    assert_eq!(outbound.left(), 0);
    bytes
}

/// All bytes into the ranges, through the ring.
pub(crate) fn write(
    staging: &Arc<Staging>,
    gpu: &Arc<GpuMemory>,
    ranges: Vec<Range<u64>>,
    bytes: &[u8],
) {
    let mut inbound = staging.write(gpu, ranges).unwrap();
    let mut rest = bytes;
    while let Some(fill) = inbound.next_buffer(soon()).unwrap() {
        let range = fill.range();
        let (now, later) = rest.split_at((range.end - range.start) as usize);
        fill.memory().write_at(range.start, now).unwrap();
        rest = later;
        inbound.submit(fill).unwrap();
    }
    assert!(rest.is_empty());
    inbound.finish(soon()).unwrap();
}
