//! The encoding of objects and contexts, on disk and on the wire.
//!
//! It is compact and versioned, and has checksums. `schema/object.md` describes it byte by byte.
//! Bytes that `encode_*` would not write are an error. So a damaged record is a read error, never
//! an absent record. The record is repaired from other replicas.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::causality::{Actor, CausalContext, Dot};
use crate::clock::Stamp;
use crate::object::{MAX_REPLACED_REQUESTS, Object, Payload, ReplacedRequest, RequestId, Version};
use crate::varint::{Reader, Short, put_bytes, put_u64, put_varint};

/// Version of the record encoding that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u8 = 2;
/// The first version of the record encoding. It stores all values, also large ones, within the part
/// that the record's checksum covers.
const ALL_WITHIN: u8 = 1;
/// Version of the context encoding.
const CONTEXT_VERSION: u8 = 1;

/// Flag of a record that contains the client's full key.
const LONG_KEY: u8 = 1;
/// Flag of a record with large values, which follow the part that the record's checksum covers.
const APART: u8 = 2;
/// Kind of a payload: a tombstone.
const TOMBSTONE: u8 = 0;
/// Kind of a payload: a value within the part that the record's checksum covers.
const VALUE: u8 = 1;
/// Kind of a payload: a large value, which follows the part that the record's checksum covers.
const VALUE_APART: u8 = 2;
/// Largest value that is stored within the part that the record's checksum covers, in bytes.
///
/// A larger value follows that part, and has a checksum of its own. So code that only compares
/// versions need not read large values.
const LARGEST_WITHIN: usize = 1_024;
const HEADER_BYTES: usize = 10;
const DOT_BYTES: usize = 16;
/// Maximum number of dots in a client's context. A context with more is refused. The contexts that
/// nodes return have far fewer.
const MAX_CLIENT_DOTS: usize = 4_096;

/// Error of decoding an object or a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The input ends too early, or a length in it exceeds the input.
    #[error("record is truncated or a length in it is wrong")]
    Truncated,
    /// The checksum does not match: the bytes are damaged.
    #[error("checksum does not match: the record is damaged")]
    Checksum,
    /// A newer build wrote the record.
    #[error("it has format version {version}, newer than this build reads")]
    NewerVersion {
        /// The record's version.
        version: u8,
    },
    /// The bytes can be decoded, but this code would not have written them.
    #[error("record breaks an invariant of the format")]
    NotCanonical,
    /// The client read the context from another key.
    #[error("this context belongs to another key: use a context only for the key that it was read from")]
    OtherKey,
}

impl From<Short> for CodecError {
    fn from(_: Short) -> Self {
        CodecError::Truncated
    }
}

/// A stored record: the object, and the full client key if the storage key cannot hold it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The object that the replica holds.
    pub object: Object,
    /// The client's key, if it is too long for a storage key.
    pub long_key: Option<Bytes>,
}

/// Encodes an object. `long_key` is the client's full key, if the storage key cannot hold it.
pub fn encode_object(object: &Object, long_key: Option<&[u8]>) -> Bytes {
    let values: usize = object.live().iter().map(|version| version.payload.len() + 38).sum();
    let context = object.replaced();
    let dots = context.vector().len() + context.extra().len() + object.replaced_requests().len();
    let mut out =
        Vec::with_capacity(HEADER_BYTES + 8 + dots * DOT_BYTES + values + long_key.map_or(0, <[u8]>::len));
    let any_apart = object.live().iter().any(|version| version.payload.len() > LARGEST_WITHIN);
    let flags = if long_key.is_some() { LONG_KEY } else { 0 } | if any_apart { APART } else { 0 };
    out.extend_from_slice(&[FORMAT_VERSION, flags]);
    out.extend_from_slice(&[0; 8]);
    if any_apart {
        out.extend_from_slice(&[0; 4]);
    }

    put_context(&mut out, context);
    put_varint(&mut out, object.replaced_requests().len() as u64);
    for seen in object.replaced_requests() {
        put_u64(&mut out, seen.request.0);
        put_u64(&mut out, seen.replaced_ms);
    }
    put_varint(&mut out, object.live().len() as u64);
    for version in object.live() {
        put_u64(&mut out, version.dot.actor.0);
        put_u64(&mut out, version.dot.stamp.0);
        put_u64(&mut out, version.request.0);
        match &version.payload {
            Payload::Tombstone => out.push(TOMBSTONE),
            Payload::Value(value) if value.len() > LARGEST_WITHIN => {
                out.push(VALUE_APART);
                put_varint(&mut out, value.len() as u64);
                put_u64(&mut out, xxh3_64(value));
            }
            Payload::Value(value) => {
                out.push(VALUE);
                put_bytes(&mut out, value);
            }
        }
    }
    if let Some(key) = long_key {
        put_bytes(&mut out, key);
    }
    if any_apart {
        let head = out.len() as u32;
        out[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&head.to_le_bytes());
    }
    let checksum = checksum_of(&out);
    out[2..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    for version in object.live() {
        if let Payload::Value(value) = &version.payload
            && value.len() > LARGEST_WITHIN
        {
            out.extend_from_slice(value);
        }
    }
    Bytes::from(out)
}

/// A decoded record whose large values have not been read. So their checksums have not been
/// compared.
pub struct Unread {
    record: Record,
    /// The large values, each with the checksum that it must have.
    values: Vec<(Bytes, u64)>,
}

impl Unread {
    /// Returns the record without a check of its large values. A caller that keeps any of them must
    /// call [`Unread::check`].
    pub fn unchecked(&self) -> &Record {
        &self.record
    }

    /// Moves the object out of the record, so that the caller can change it. Its large values are
    /// not checked.
    pub fn take_unchecked(&mut self) -> Object {
        std::mem::take(&mut self.record.object)
    }

    /// Checks that the large values are those that were written.
    ///
    /// # Errors
    /// [`CodecError::Checksum`] if one of them is damaged.
    pub fn check(&self) -> Result<(), CodecError> {
        let is_whole = |(value, checksum): &(Bytes, u64)| xxh3_64(value) == *checksum;
        self.values.iter().all(is_whole).then_some(()).ok_or(CodecError::Checksum)
    }
}

/// Decodes a record. Its values share the memory of `bytes`.
///
/// # Errors
/// [`CodecError`] for bytes that [`encode_object`] did not write.
pub fn decode_object(bytes: &Bytes) -> Result<Record, CodecError> {
    let unread = decode_unread(bytes)?;
    unread.check()?;
    Ok(unread.record)
}

/// Decodes a record as [`decode_object`] does, but does not read large values.
///
/// # Errors
/// Those of [`decode_object`], except for damaged bytes of large values.
pub fn decode_unread(bytes: &Bytes) -> Result<Unread, CodecError> {
    let mut reader = Reader::new(bytes);
    let version = reader.byte()?;
    if version > FORMAT_VERSION {
        return Err(CodecError::NewerVersion { version });
    }
    let flags = reader.byte()?;
    let checksum = reader.u64()?;
    let head = if flags & APART != 0 { reader.u32()? as usize } else { bytes.len() };
    if head < HEADER_BYTES || head > bytes.len() {
        return Err(CodecError::Truncated);
    }
    if checksum != checksum_of(&bytes[..head]) {
        return Err(CodecError::Checksum);
    }
    let most_flags = if version == ALL_WITHIN { LONG_KEY } else { LONG_KEY | APART };
    if version < ALL_WITHIN || flags > most_flags {
        return Err(CodecError::NotCanonical);
    }
    let mut reader = reader.until(head)?;
    let mut apart = Vec::new();
    let mut end_of_apart = head;

    let replaced = take_context(&mut reader)?;
    let count = reader.count(DOT_BYTES)?;
    if count > MAX_REPLACED_REQUESTS {
        return Err(CodecError::NotCanonical);
    }
    let mut replaced_requests = Vec::with_capacity(count);
    for _ in 0..count {
        let request = RequestId(reader.u64()?);
        replaced_requests.push(ReplacedRequest { request, replaced_ms: reader.u64()? });
    }
    let count = reader.count(DOT_BYTES + 9)?;
    let mut live = Vec::with_capacity(count);
    for _ in 0..count {
        let dot = take_dot(&mut reader)?;
        let request = RequestId(reader.u64()?);
        let payload = match reader.byte()? {
            TOMBSTONE => Payload::Tombstone,
            VALUE => {
                let length = reader.bytes()?.len();
                let end = reader.position();
                if length > LARGEST_WITHIN && version != ALL_WITHIN {
                    return Err(CodecError::NotCanonical);
                }
                Payload::Value(bytes.slice(end - length..end))
            }
            VALUE_APART => {
                let length = usize::try_from(reader.varint()?).map_err(|_| CodecError::Truncated)?;
                let checksum = reader.u64()?;
                let begin = end_of_apart;
                if length <= LARGEST_WITHIN || flags & APART == 0 {
                    return Err(CodecError::NotCanonical);
                }
                if length > bytes.len() - begin {
                    return Err(CodecError::Truncated);
                }
                end_of_apart += length;
                let value = bytes.slice(begin..end_of_apart);
                apart.push((value.clone(), checksum));
                Payload::Value(value)
            }
            _ => return Err(CodecError::NotCanonical),
        };
        live.push(Version { dot, request, payload });
    }
    let long_key = if flags & LONG_KEY != 0 { Some(Bytes::copy_from_slice(reader.bytes()?)) } else { None };
    if reader.remaining() != 0 || end_of_apart != bytes.len() || apart.is_empty() != (flags & APART == 0) {
        return Err(CodecError::NotCanonical);
    }
    let object = Object::from_parts(replaced, live, replaced_requests).ok_or(CodecError::NotCanonical)?;
    Ok(Unread { record: Record { object, long_key }, values: apart })
}

/// Encodes a client's context together with the hash of its key, so that it cannot be used for
/// another key. The result is at least a header. Zero bytes are reserved for the empty context.
pub fn encode_context(context: &CausalContext, key_hash: u64) -> Vec<u8> {
    let dots = context.vector().len() + context.extra().len();
    let mut out = Vec::with_capacity(HEADER_BYTES + 10 + dots * DOT_BYTES);
    out.extend_from_slice(&[CONTEXT_VERSION, 0]);
    out.extend_from_slice(&[0; 8]);
    put_u64(&mut out, key_hash);
    put_context(&mut out, context);
    let checksum = checksum_of(&out);
    out[2..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    out
}

/// Decodes a context that a client sends with a request for the key with this hash.
///
/// # Errors
/// [`CodecError`]; `OtherKey` if the context was read from another key.
pub fn decode_context(bytes: &[u8], key_hash: u64) -> Result<CausalContext, CodecError> {
    if bytes.is_empty() {
        return Ok(CausalContext::EMPTY);
    }
    let mut reader = Reader::new(bytes);
    let version = reader.byte()?;
    if version > CONTEXT_VERSION {
        return Err(CodecError::NewerVersion { version });
    }
    let flags = reader.byte()?;
    if reader.u64()? != checksum_of(bytes) {
        return Err(CodecError::Checksum);
    }
    if reader.u64()? != key_hash {
        return Err(CodecError::OtherKey);
    }
    let context = take_context(&mut reader)?;
    let dots = context.vector().len() + context.extra().len();
    if version != CONTEXT_VERSION || flags != 0 || reader.remaining() != 0 || dots > MAX_CLIENT_DOTS {
        return Err(CodecError::NotCanonical);
    }
    Ok(context)
}

/// Returns the checksum over the two leading bytes (version, flags) and all bytes after the
/// checksum's own field.
fn checksum_of(bytes: &[u8]) -> u64 {
    let lead = u64::from(bytes[0]) << 8 | u64::from(bytes[1]);
    xxh3_64(&bytes[HEADER_BYTES..]) ^ lead.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn put_context(out: &mut Vec<u8>, context: &CausalContext) {
    put_varint(out, context.vector().len() as u64);
    for (actor, stamp) in context.vector() {
        put_u64(out, actor.0);
        put_u64(out, stamp.0);
    }
    put_varint(out, context.extra().len() as u64);
    for dot in context.extra() {
        put_u64(out, dot.actor.0);
        put_u64(out, dot.stamp.0);
    }
}

fn take_dot(reader: &mut Reader<'_>) -> Result<Dot, CodecError> {
    let actor = Actor(reader.u64()?);
    let stamp = Stamp(reader.u64()?);
    if stamp > Stamp::MAX {
        return Err(CodecError::NotCanonical);
    }
    Ok(Dot { actor, stamp })
}

fn take_context(reader: &mut Reader<'_>) -> Result<CausalContext, CodecError> {
    let count = reader.count(DOT_BYTES)?;
    let mut vector = Vec::with_capacity(count);
    for _ in 0..count {
        let Dot { actor, stamp } = take_dot(reader)?;
        vector.push((actor, stamp));
    }
    let count = reader.count(DOT_BYTES)?;
    let mut extra = Vec::with_capacity(count);
    for _ in 0..count {
        extra.push(take_dot(reader)?);
    }
    CausalContext::from_parts(vector, extra).ok_or(CodecError::NotCanonical)
}
