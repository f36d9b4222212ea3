//! A range of the engine's records, read page by page.

use quorate_core::key::end_of_prefix;
use quorate_core::storage::{Page, Range, StorageEngine, StorageError};

/// Upper limits of one page. The first limit that is reached ends the page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageBounds {
    pub(crate) records: usize,
    /// Bytes of keys and values.
    pub(crate) bytes: usize,
}

/// The pages of all records whose keys begin with a prefix, in key order.
pub(crate) struct ScanPages {
    /// Start of the next page: at first the prefix, later the last key that was read.
    start: Vec<u8>,
    /// True if `start` itself was read, so that the next page begins after it.
    after: bool,
    /// First key after all keys with the prefix. `None`: no key can come after them.
    end: Option<Vec<u8>>,
    bounds: PageBounds,
    ended: bool,
}

impl ScanPages {
    pub(crate) fn under(prefix: Vec<u8>, bounds: PageBounds) -> ScanPages {
        ScanPages { end: end_of_prefix(&prefix), start: prefix, after: false, bounds, ended: false }
    }

    /// Reads the next page. `None` after the last one.
    ///
    /// # Errors
    /// If the engine cannot read. The position does not move, so the caller can read the same page
    /// again.
    pub(crate) fn next(&mut self, engine: &dyn StorageEngine) -> Result<Option<Page>, StorageError> {
        if self.ended {
            return Ok(None);
        }
        let page = engine.scan(Range {
            start: &self.start,
            after: self.after,
            end: self.end.as_deref(),
            limit: self.bounds.records,
            max_bytes: self.bounds.bytes,
        })?;
        match page.records.last() {
            Some((last, _)) if page.more => (self.start, self.after) = (last.to_vec(), true),
            _ => self.ended = true,
        }
        Ok(Some(page))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use quorate_core::StorageKey;
    use quorate_core::storage::{Capability, Update};

    use super::*;

    /// An engine in which every second scan fails.
    struct Flaky {
        records: Vec<Bytes>,
        scans: std::sync::atomic::AtomicUsize,
    }

    impl StorageEngine for Flaky {
        fn get(&self, _: &StorageKey) -> Result<Option<Bytes>, StorageError> {
            unreachable!("pages are scanned")
        }

        fn update(&self, _: Vec<Box<dyn Update>>) {
            unreachable!("pages are scanned")
        }

        fn scan(&self, range: Range<'_>) -> Result<Page, StorageError> {
            if self.scans.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 2 == 1 {
                return Err(StorageError::Io { detail: "every second scan".into() });
            }
            let wanted = self.records.iter().filter(|key| match range.after {
                true => key.as_ref() > range.start,
                false => key.as_ref() >= range.start,
            });
            let wanted = wanted.filter(|key| range.end.is_none_or(|end| key.as_ref() < end));
            let all: Vec<(Bytes, Bytes)> = wanted.map(|key| (key.clone(), Bytes::new())).collect();
            let more = all.len() > range.limit;
            Ok(Page { records: all.into_iter().take(range.limit).collect(), more })
        }

        fn checkpoint(&self, _: &Path) -> Result<(), StorageError> {
            unreachable!("pages are scanned")
        }

        fn capability(&self) -> Capability {
            Capability { durable: false, ack_when_durable: false, survives_restart: false }
        }
    }

    /// Every record under the prefix is returned once and in order, also if a page is read again
    /// after an error.
    #[test]
    fn pages_go_on_after_an_error_and_end() {
        let key = |byte: u8| Bytes::copy_from_slice(&[1, byte]);
        let mut records: Vec<Bytes> = (0..7).map(key).collect();
        records.insert(0, Bytes::from_static(&[0, 9]));
        records.push(Bytes::from_static(&[2, 0]));
        let engine = Flaky { records, scans: Default::default() };
        let mut pages = ScanPages::under(vec![1], PageBounds { records: 3, bytes: usize::MAX });
        let (mut found, mut errors) = (Vec::new(), 0);
        loop {
            match pages.next(&engine) {
                Ok(Some(page)) => found.extend(page.records.into_iter().map(|(key, _)| key)),
                Ok(None) => break,
                Err(_) => errors += 1,
            }
        }
        assert_eq!(found, (0..7).map(key).collect::<Vec<_>>());
        assert_eq!(errors, 2);
    }
}
