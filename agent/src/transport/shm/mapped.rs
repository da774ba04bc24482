//! An owner's region, mapped here for reading.

use kvferry_memory::{GenerationView, HostMemory, MemoryError};
use kvferry_proto::{Part, RemoteSpan};

use super::client::RegionDescriptors;
use crate::transport::{
    ReadError,
    operation::Target,
    spans::{SpanRefusal, WORD_BYTES, check_words},
};

/// Generation words loaded at a time.
const STAGED_WORDS: u64 = 512;

/// Why a region could not be mapped.
#[derive(Debug, thiserror::Error)]
pub(super) enum MapError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("its memory has {found} bytes where the owner says {said}")]
    Length { found: u64, said: u64 },
    #[error("its generation table is shorter than {slots} slots")]
    Generations { slots: u32 },
}

/// The mapping. Its bytes stay readable when the owner is dead: the generations then stay as they are.
#[derive(Debug)]
pub(super) struct MappedRegion {
    data: HostMemory,
    generations: GenerationView,
    slots: u32,
}

impl MappedRegion {
    pub(super) fn new(descriptors: RegionDescriptors) -> Result<Self, MapError> {
        let data = HostMemory::view(descriptors.data)?;
        if data.len() != descriptors.data_bytes {
            return Err(MapError::Length {
                found: data.len(),
                said: descriptors.data_bytes,
            });
        }
        let generations = GenerationView::new(descriptors.generations)?;
        let slots = descriptors.slots;
        if slots == 0 || generations.load(slots - 1).is_err() {
            return Err(MapError::Generations { slots });
        }
        Ok(Self {
            data,
            generations,
            slots,
        })
    }

    /// Is the span inside?
    pub(super) fn check(&self, span: &RemoteSpan) -> Result<(), SpanRefusal> {
        check_words(span)?;
        let len = match span.part {
            Part::Data => self.data.len(),
            Part::Generations => u64::from(self.slots) * WORD_BYTES,
        };
        match span.end() {
            Some(end) if end <= len => Ok(()),
            _ => Err(SpanRefusal::OutOfRange),
        }
    }

    /// Copies a span that is inside.
    pub(super) fn copy(&self, span: &RemoteSpan, target: &mut Target) -> Result<(), CopyError> {
        match span.part {
            Part::Data => {
                let range = span.offset..span.offset + span.len;
                target.fill(&self.data, range).map_err(|error| {
                    // Whose fault was it? The owner's, if its bytes cannot be read.
                    let mut probe = [0];
                    match self.data.read_at(span.offset + span.len - 1, &mut probe) {
                        Ok(()) => CopyError::Local(error.into()),
                        Err(_) => CopyError::Remote(SpanRefusal::MemoryCut),
                    }
                })
            }
            Part::Generations => self.copy_words(span, target),
        }
    }

    fn copy_words(&self, span: &RemoteSpan, target: &mut Target) -> Result<(), CopyError> {
        let (mut slot, end) = (
            span.offset / WORD_BYTES,
            (span.offset + span.len) / WORD_BYTES,
        );
        let mut staged = Vec::with_capacity((STAGED_WORDS.min(end - slot) * WORD_BYTES) as usize);
        while slot < end {
            staged.clear();
            for _ in 0..STAGED_WORDS.min(end - slot) {
                let word = u32::try_from(slot)
                    .ok()
                    .and_then(|slot| self.generations.load(slot).ok())
                    .ok_or(CopyError::Remote(SpanRefusal::OutOfRange))?;
                staged.extend_from_slice(&word.to_le_bytes());
                slot += 1;
            }
            target
                .fill_bytes(&staged)
                .map_err(|error| CopyError::Local(error.into()))?;
        }
        Ok(())
    }
}

/// Whose memory failed.
#[derive(Debug)]
pub(super) enum CopyError {
    Remote(SpanRefusal),
    Local(ReadError),
}
