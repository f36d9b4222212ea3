//! Free space, and an upper bound of the space that a change needs.
//!
//! The engine compares the two before it accepts a change. So LMDB's map and the disk have space
//! for every accepted change.

const PAGE_BYTES: usize = 4096;
/// Largest record that LMDB stores inside a leaf page: a page must hold two (`me_nodemax`). The
/// value of a larger record is stored in overflow pages.
const MAX_INLINE_BYTES: usize = 2038;
/// Bytes that LMDB adds to a record in a leaf page.
const RECORD_HEADER_BYTES: usize = 8;
/// Bytes that LMDB puts before the first overflow page's part of a value.
const PAGE_HEADER_BYTES: usize = 16;
/// Bytes that a leaf page needs for a value in overflow pages: the number of the first such page.
const OVERFLOW_POINTER_BYTES: usize = 8;

/// Space that can still be used without touching the reserve (`reserve_mib`).
#[derive(Clone, Copy, Default)]
pub(crate) struct FreeSpace {
    /// Number of pages by which the tree can still grow in LMDB's map.
    pub(crate) tree_pages: u64,
    /// Bytes that are free on the disk.
    pub(crate) disk_bytes: u64,
}

impl FreeSpace {
    /// Returns true if the map has space for the pages, and the disk for the pages and the WAL.
    pub(crate) fn fits(self, tree_pages: usize, wal_bytes: usize) -> bool {
        let bytes = (tree_pages * PAGE_BYTES + wal_bytes) as u64;
        tree_pages as u64 <= self.tree_pages && bytes <= self.disk_bytes
    }
}

/// Computes the most pages by which the tree grows when a record gets `new` value bytes.
///
/// `stored` is the size of the record's present value, or `None` if there is no such record. A new
/// or larger record may split its page, however small the record is. A commit also copies the pages
/// that it changes. Old copies do not count here: they are free again with the commit after the
/// next.
pub(crate) fn page_growth(key_bytes: usize, stored: Option<usize>, new: usize) -> usize {
    let overflow_pages = |value: usize| match RECORD_HEADER_BYTES + key_bytes + value {
        inline if inline <= MAX_INLINE_BYTES => 0,
        _ => (PAGE_HEADER_BYTES + value).div_ceil(PAGE_BYTES),
    };
    let inline_bytes = |value: usize| if overflow_pages(value) > 0 { OVERFLOW_POINTER_BYTES } else { value };
    match stored {
        None => overflow_pages(new) + 1,
        Some(stored) => {
            let splits = usize::from(inline_bytes(new) > inline_bytes(stored));
            overflow_pages(new).saturating_sub(overflow_pages(stored)) + splits
        }
    }
}
