//! Decisions from bytes, for inputs with a structure.

/// Takes decisions off the front of an input; when it is used up, every further one is zero.
#[derive(Debug)]
pub(crate) struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.u8()))
    }

    /// 0 to `n` - 1.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::from(self.u8()) % n.max(1)
    }

    /// A number of up to 64 bits, small ones and those at the edges as easily written as others.
    pub(crate) fn number(&mut self) -> u64 {
        match self.u8() {
            small @ 0..=199 => small.into(),
            200..=209 => self.u16().into(),
            at @ 210..=219 => u64::MAX - u64::from(at - 210),
            at @ 220..=229 => u64::from(u32::MAX) - 5 + u64::from(at - 220),
            at @ 230..=239 => (1 << 63) - 5 + u64::from(at - 230),
            _ => self.u64(),
        }
    }

    /// Bytes with their length before them; as many as there are.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.u16()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }

    /// What is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
