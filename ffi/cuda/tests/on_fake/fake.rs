//! A fake libcuda, and the layer on it.

use std::ops::Deref;

use kvferry_cuda_fake::FakeCuda;

pub(crate) use kvferry_cuda_fake::compile as library;

use crate::common::World;

/// A world on a libcuda of its own.
pub(crate) struct Fake {
    pub(crate) world: World,
    cuda: FakeCuda,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    pub(crate) fn with(options: &[&str]) -> Self {
        let cuda = FakeCuda::with(options);
        let world = World::open(Some(cuda.path().to_owned())).unwrap();
        Self { world, cuda }
    }
}

impl Deref for Fake {
    type Target = FakeCuda;

    fn deref(&self) -> &FakeCuda {
        &self.cuda
    }
}
