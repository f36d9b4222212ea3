//! LEB128 lengths and a bounds-checked reader, for the encodings of this crate.

/// Error of reading: the input ended early, a number was too long, or text was not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short;

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A cursor over bytes that come from a disk or a peer: every step is checked.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Short> {
        if count > self.remaining() {
            return Err(Short);
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Short> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        let mut fixed = [0; 8];
        fixed.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(fixed))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        let mut fixed = [0; 4];
        fixed.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(fixed))
    }

    /// Returns the same reader, for which the input ends at position `end`.
    pub(crate) fn until(mut self, end: usize) -> Result<Reader<'a>, Short> {
        self.bytes = self.bytes.get(..end).filter(|_| end >= self.at).ok_or(Short)?;
        Ok(self)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, Short> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                // A number must have its shortest encoding.
                return if byte == 0 && shift > 0 { Err(Short) } else { Ok(value) };
            }
        }
        Err(Short)
    }

    /// Reads a count of items of at least `item_bytes` bytes each. A count that the rest of the
    /// input cannot hold is refused before memory is allocated for it.
    pub(crate) fn count(&mut self, item_bytes: usize) -> Result<usize, Short> {
        let count = usize::try_from(self.varint()?).map_err(|_| Short)?;
        if count > self.remaining() / item_bytes {
            return Err(Short);
        }
        Ok(count)
    }

    /// Reads a text: its length in bytes, then that many bytes of UTF-8.
    pub(crate) fn text(&mut self) -> Result<&'a str, Short> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Short)
    }

    /// Checks that the rest of the input can hold `items` items of at least one byte each. Call it
    /// before memory is allocated for the items.
    pub(crate) fn check_count(&self, items: u64) -> Result<(), Short> {
        if items > self.remaining() as u64 { Err(Short) } else { Ok(()) }
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Short> {
        let length = self.count(1)?;
        self.take(length)
    }
}
