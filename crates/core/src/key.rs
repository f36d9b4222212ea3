//! Keys as clients name them, and as engines store them.

use std::fmt;

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::error::RequestError;

/// Longest bucket name, in bytes.
pub const MAX_BUCKET_BYTES: usize = 64;
/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Longest value that a bucket may be configured to accept, in bytes.
pub const MAX_VALUE_BYTES: usize = 16 * 1024 * 1024;

/// Number of leading bytes of a key that its storage key contains unchanged. A 128-bit hash
/// replaces the rest of a longer key.
const STORED_KEY_BYTES: usize = 400;
const HASH_BYTES: usize = 16;

/// A bucket's name: 1 to 64 bytes of `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct BucketName(String);

impl BucketName {
    /// Checks a name.
    ///
    /// # Errors
    /// `InvalidRequest`, with the name and the allowed characters.
    pub fn new(name: &str) -> Result<BucketName, RequestError> {
        check_bucket(name.as_bytes())?;
        Ok(BucketName(name.to_owned()))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check_bucket(name: &[u8]) -> Result<(), RequestError> {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > MAX_BUCKET_BYTES || !name.iter().all(allowed) {
        let shown: String = String::from_utf8_lossy(name).chars().take(80).collect();
        return Err(RequestError::InvalidRequest {
            detail: format!(
                "bucket name {shown:?} ({} bytes): use 1 to {MAX_BUCKET_BYTES} of the characters A-Z a-z 0-9 . _ -",
                name.len()
            ),
        });
    }
    Ok(())
}

/// The name of a value: a bucket, and 1 to 1,024 bytes of key in it.
///
/// One buffer holds the bucket, a zero byte and the key. The hash of these bytes is the key's
/// position on the ring.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    joined: Bytes,
    bucket_bytes: u8,
}

impl Key {
    /// Checks a bucket's name and a key, and joins them.
    ///
    /// # Errors
    /// `InvalidRequest`, with the value, the limit and the remedy.
    pub fn new(bucket: &[u8], key: &[u8]) -> Result<Key, RequestError> {
        check_bucket(bucket)?;
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(RequestError::InvalidRequest {
                detail: format!(
                    "key of {} bytes: a key has 1 to {MAX_KEY_BYTES}; put the rest into the value, or hash it",
                    key.len()
                ),
            });
        }
        let mut joined = Vec::with_capacity(bucket.len() + 1 + key.len());
        joined.extend_from_slice(bucket);
        joined.push(0);
        joined.extend_from_slice(key);
        Ok(Key { joined: Bytes::from(joined), bucket_bytes: bucket.len() as u8 })
    }

    /// Returns the bucket's name.
    pub fn bucket(&self) -> &str {
        std::str::from_utf8(&self.joined[..self.bucket_bytes as usize])
            .expect("checked to be ASCII in Key::new")
    }

    /// Returns the key within the bucket.
    pub fn bytes(&self) -> &[u8] {
        &self.joined[self.bucket_bytes as usize + 1..]
    }

    /// Returns the key's position on the ring: xxh3-64 over the bucket, a zero byte and the key. A
    /// client's context contains this hash too, so that the context can only be used for this key.
    pub fn hash(&self) -> u64 {
        xxh3_64(&self.joined)
    }

    /// True if the key is so long that its storage key contains only a part of it. The record then
    /// holds the whole key.
    pub fn is_long(&self) -> bool {
        self.bytes().len() > STORED_KEY_BYTES
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket(), self.bytes().escape_ascii())
    }
}

/// One of the ring's Q equal parts, numbered from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartitionId(pub u16);

/// The kind of a record. It is the first byte of every storage key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Table {
    /// Objects of clients' keys.
    Objects = b'd',
    /// Hints: objects kept for a replica that could not be reached.
    Hints = b'h',
    /// Metadata of the node itself: its owner, its layouts, its recovery.
    NodeMetadata = b'm',
}

/// The name of a record in a storage engine: at most 511 bytes, the same in every engine. The
/// storage key of an object is: table, partition, bucket, a zero byte, key.
///
/// A 128-bit hash replaces the bytes of a key after the first 400; the record then holds the full
/// key. Scans return records in the order of these bytes (storage order).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorageKey(Bytes);

/// Longest storage key, in bytes. Every engine must accept it.
pub const MAX_STORAGE_KEY_BYTES: usize = 511;

impl StorageKey {
    /// Returns the storage key of a client's key.
    pub fn of(partition: PartitionId, key: &Key) -> StorageKey {
        let mut name = Self::bucket_start(partition, key.bucket());
        push_stored_key(&mut name, key.bytes());
        StorageKey(Bytes::from(name))
    }

    /// Returns the storage key of a record of another table: a hint, or node metadata.
    pub fn of_table(table: Table, rest: &[u8]) -> StorageKey {
        let mut name = Vec::with_capacity(1 + rest.len());
        name.push(table as u8);
        name.extend_from_slice(rest);
        assert!(name.len() <= MAX_STORAGE_KEY_BYTES);
        StorageKey(Bytes::from(name))
    }

    /// Checks bytes that a peer sent. Returns `None` if they are not the storage key of an object.
    pub fn from_peer(bytes: &[u8]) -> Option<StorageKey> {
        if bytes.len() > MAX_STORAGE_KEY_BYTES || bytes.first() != Some(&(Table::Objects as u8)) {
            return None;
        }
        let rest = bytes.get(3..)?;
        let zero = rest.iter().position(|&b| b == 0)?;
        let key_bytes = rest.len() - zero - 1;
        let known =
            check_bucket(&rest[..zero]).is_ok() && (1..=STORED_KEY_BYTES + HASH_BYTES).contains(&key_bytes);
        known.then(|| StorageKey(Bytes::copy_from_slice(bytes)))
    }

    /// Returns the common first bytes of all storage keys of the bucket in the partition. A scan of
    /// the bucket starts there.
    pub fn bucket_start(partition: PartitionId, bucket: &str) -> Vec<u8> {
        let mut name = Vec::with_capacity(3 + bucket.len() + 1 + 32);
        name.push(Table::Objects as u8);
        name.extend_from_slice(&partition.0.to_be_bytes());
        name.extend_from_slice(bucket.as_bytes());
        name.push(0);
        name
    }

    /// Returns the common first bytes of all storage keys of the bucket whose keys begin with
    /// `prefix`.
    ///
    /// A prefix that is longer than a storage key can hold is cut. The caller then has to compare
    /// the full keys.
    pub fn prefix_start(partition: PartitionId, bucket: &str, prefix: &[u8]) -> Vec<u8> {
        let mut name = Self::bucket_start(partition, bucket);
        name.extend_from_slice(&prefix[..prefix.len().min(STORED_KEY_BYTES)]);
        name
    }

    /// Returns the common first bytes of all storage keys of the partition, in all buckets.
    pub fn partition_start(partition: PartitionId) -> Vec<u8> {
        let mut name = vec![Table::Objects as u8];
        name.extend_from_slice(&partition.0.to_be_bytes());
        name
    }

    /// Returns the bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes without copying them.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// Returns the partition. Call it only on the storage key of an object.
    pub fn partition(&self) -> PartitionId {
        PartitionId(u16::from_be_bytes([self.0[1], self.0[2]]))
    }

    /// Returns the bucket. Call it only on the storage key of an object.
    pub fn bucket(&self) -> &str {
        let rest = &self.0[3..];
        let end = rest.iter().position(|&b| b == 0).unwrap_or(rest.len());
        std::str::from_utf8(&rest[..end]).unwrap_or("")
    }

    /// Returns the client's key, or `None` if the storage key contains only a part of it. The
    /// record then holds the whole key.
    pub fn client_key(&self) -> Option<&[u8]> {
        let rest = &self.0[3..];
        let key = &rest[rest.iter().position(|&b| b == 0)? + 1..];
        (key.len() <= STORED_KEY_BYTES).then_some(key)
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

fn push_stored_key(name: &mut Vec<u8>, key: &[u8]) {
    if key.len() <= STORED_KEY_BYTES {
        name.extend_from_slice(key);
    } else {
        name.extend_from_slice(&key[..STORED_KEY_BYTES]);
        name.extend_from_slice(&xxh3_128(&key[STORED_KEY_BYTES..]).to_be_bytes());
    }
}

/// Returns the smallest bytes that are greater than all bytes that begin with `prefix`. Returns
/// `None` if there are no such bytes.
pub fn end_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest bucket and key fit LMDB's limit of 511 bytes. A key of exactly 400 bytes is not
    /// mistaken for one with a hash.
    #[test]
    fn storage_keys_fit_and_do_not_collide() {
        let bucket = "b".repeat(MAX_BUCKET_BYTES);
        let long = Key::new(bucket.as_bytes(), &[7; MAX_KEY_BYTES]).unwrap();
        let stored = StorageKey::of(PartitionId(1023), &long);
        assert!(stored.as_bytes().len() <= MAX_STORAGE_KEY_BYTES);
        assert!(long.is_long() && stored.client_key().is_none());
        assert_eq!(stored.bucket(), bucket);

        let whole = Key::new(bucket.as_bytes(), &[7; STORED_KEY_BYTES]).unwrap();
        let stored = StorageKey::of(PartitionId(1023), &whole);
        assert_eq!(stored.client_key(), Some(whole.bytes()));
        assert_eq!(StorageKey::from_peer(stored.as_bytes()), Some(stored));
    }

    /// Bytes from a peer that are no storage key of an object are refused.
    #[test]
    fn malformed_storage_keys_are_refused() {
        for bytes in
            [&b""[..], b"d", b"d\0\0", b"h\0\0b\0k", b"d\0\0b\0", b"d\0\0\0k", b"d\0\0b k\0k", &[b'd'; 600]]
        {
            assert_eq!(StorageKey::from_peer(bytes), None, "{bytes:?}");
        }
        assert!(StorageKey::from_peer(b"d\0\0b\0k").is_some());
    }

    /// A key or bucket that breaks a limit is refused, with the value, the limit and the remedy.
    #[test]
    fn limits_are_named() {
        let error = Key::new(b"carts", &[0; 1025]).unwrap_err().to_string();
        assert!(error.contains("1025") && error.contains("1024"), "{error}");
        let error = Key::new(b"my carts", b"k").unwrap_err().to_string();
        assert!(error.contains("my carts") && error.contains("A-Z"), "{error}");
    }
}
