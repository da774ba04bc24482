//! The generation words of a region's slots: what makes a read valid.
//!
//! The owner makes a slot's word odd before anything writes to the slot, and even again, two higher,
//! when the new bytes are complete. A reader copies the bytes first and loads the word after: equal
//! to what it was told and even, the bytes are the block.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    AccessError, HostMemory, MemoryError,
    word::{self, Word},
};

/// Of a slot that was never written: odd, so that nothing validates against it.
const UNWRITTEN: u64 = 1;

/// The owner's side. Only the process that made it can write to it, whoever holds its descriptor.
#[derive(Debug)]
pub struct GenerationTable {
    memory: Arc<HostMemory>,
    slots: u32,
}

impl GenerationTable {
    /// A table for `slots` slots that were never written.
    ///
    /// # Errors
    /// [`MemoryError`] where the kernel has no memory for it.
    pub fn new(slots: u32) -> Result<Self, MemoryError> {
        let memory = HostMemory::sole_writer("kvferry-generations", u64::from(slots) * 8)?;
        let memory = Arc::new(memory);
        let table = Self { memory, slots };
        for slot in 0..slots {
            if let Some(word) = table.word(slot) {
                Word::store(word, UNWRITTEN, Ordering::Release);
            }
        }
        Ok(table)
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The slot's generation; None for a slot that is not there.
    #[must_use]
    pub fn load(&self, slot: u32) -> Option<u64> {
        self.memory.load_word(u64::from(slot) * 8).ok()
    }

    /// Makes the slot's generation odd, before anything writes to the slot. Gives the generation.
    /// One thread at a time may call this and [`GenerationTable::seal`] for one slot.
    pub fn begin_write(&self, slot: u32) -> Option<u64> {
        Some(word::begin_write(self.word(slot)?))
    }

    /// Makes the slot's generation even, after its bytes are complete. Gives the generation, which
    /// no earlier seal of the slot ever had. Sealing a sealed slot changes nothing.
    pub fn seal(&self, slot: u32) -> Option<u64> {
        Some(word::seal(self.word(slot)?))
    }

    /// The words, to let devices read them.
    #[must_use]
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.memory
    }

    /// A descriptor for readers on this host; it cannot be mapped for writing.
    ///
    /// # Errors
    /// [`MemoryError::Descriptor`].
    pub fn descriptor(&self) -> Result<OwnedFd, MemoryError> {
        self.memory.read_only_descriptor()
    }

    fn word(&self, slot: u32) -> Option<&AtomicU64> {
        self.memory.word(u64::from(slot) * 8).ok()
    }
}

/// A reader's side, on the same host.
#[derive(Debug)]
pub struct GenerationView {
    memory: HostMemory,
}

impl GenerationView {
    /// Maps a table handed over by its owner.
    ///
    /// # Errors
    /// [`MemoryError`]; [`MemoryError::NotAFile`] also for memory that its owner could cut.
    pub fn new(descriptor: OwnedFd) -> Result<Self, MemoryError> {
        let memory = HostMemory::view(descriptor)?;
        if !memory.is_stable() {
            return Err(MemoryError::NotAFile);
        }
        Ok(Self { memory })
    }

    /// The slot's generation, loaded after everything this thread copied before.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] for a slot that is not there.
    pub fn load(&self, slot: u32) -> Result<u64, AccessError> {
        self.memory.load_word(u64::from(slot) * 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_never_repeats() {
        let table = GenerationTable::new(2).unwrap();
        assert_eq!(table.load(0), Some(1));
        let mut last = 0;
        for _ in 0..10 {
            assert_eq!(table.begin_write(0), Some(last + 1));
            // Given up and taken again: still the same odd number.
            assert_eq!(table.begin_write(0), Some(last + 1));
            let sealed = table.seal(0).unwrap();
            assert_eq!(sealed, last + 2);
            assert_eq!(table.seal(0), Some(sealed));
            last = sealed;
        }
        assert_eq!(table.load(1), Some(1));
        assert_eq!(table.load(2), None);
        assert_eq!(table.begin_write(2), None);
    }

    #[test]
    fn readers_see_the_owners_words_and_cannot_change_them() {
        let table = GenerationTable::new(600).unwrap();
        let view = GenerationView::new(table.descriptor().unwrap()).unwrap();
        table.begin_write(513);
        table.seal(513);
        assert_eq!(view.load(513).unwrap(), 2);
        assert_eq!(view.load(0).unwrap(), 1);
        assert!(view.load(600).is_err());
        // Not even with the owner's own descriptor.
        let writable = table.memory.descriptor().unwrap();
        assert!(HostMemory::import(writable).is_err());
    }
}
